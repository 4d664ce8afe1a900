"""The configuration: what it keeps, and what it refuses."""

import pytest
import torch
from transformers import (
    AutoConfig,
)

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderModel,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderModel,
)


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(num_key_value_heads=1, classifier_dropout=0.25, rope_theta=500.0, num_labels=5)
    assert DeceroEncoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.num_key_value_heads, loaded.classifier_dropout, loaded.rope_theta) == (1, 0.25, 500.0)
    assert (loaded.head_dim, loaded.num_labels, loaded.hidden_size) == (14, 5, 33)


def test_unset_sizes_follow_from_the_others(make_config):
    config = make_config(hidden_size=42, head_dim=None)
    assert (config.head_dim, config.num_key_value_heads) == (14, 3)


RELATIVE = {"position_embedding_type": "relative"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 32, "head_dim": None}, "hidden_size 32 is not a multiple of num_attention_heads 3"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 2},
            "num_attention_heads 3 is not a multiple of num_key_value",
        ),
        ({"head_dim": 11}, "head_dim 11 must be even"),
        ({"position_offset": 2}, "position_offset works only with learned positions, not with rotary"),
        ({"layer_types": ["sliding_attention"] * 2}, "has sliding_attention, but sliding_window is None"),
        ({"sliding_window": 0}, "has sliding_attention, but sliding_window is 0"),
        ({"sliding_window": -3}, "has sliding_attention, but sliding_window is -3"),
        ({"layer_types": ["full_attention"]}, "num_hidden_layers.*2.*layer_types.*1"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({**RELATIVE, "relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3 must be in \\[4"),
        (
            {**RELATIVE, "relative_attention_max_distance": 16},
            "num_buckets 32 must be in \\[4, 2 x max_distance 16",
        ),
        ({"hidden_act": "swiglu"}, "unknown hidden_act swiglu; known: .*gelu.*silu"),
        ({"norm_type": "batchnorm"}, "norm_type"),
        ({"norm_placement": "sandwich"}, "norm_placement"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"hidden_size": "33"}, "hidden_size"),
        ({"gated_mlp": "yes"}, "gated_mlp"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(make_config, fields, message):
    with pytest.raises(Exception, match=message):
        make_config(**fields)


@pytest.mark.parametrize("fields", [{"relative_attention_num_buckets": 4, "relative_attention_max_distance": 3}, {}])
def test_the_smallest_buckets_that_are_allowed_work(make_config, fields):
    shapes = ((DeceroEncoderConfig, DeceroEncoderModel), (DeceroDecoderConfig, DeceroDecoderModel))
    for config_class, model_class in shapes:
        model = model_class(make_config(config_class, **RELATIVE, **fields))
        assert model(torch.ones(1, 101, dtype=torch.long))[0].isfinite().all()


@pytest.mark.parametrize("config_class", [DeceroEncoderConfig, DeceroDecoderConfig, DeceroEncoderDecoderConfig])
def test_no_shape_takes_a_configuration_that_cannot_work(make_config, config_class):
    for fields, message in (
        ({"hidden_act": "swiglu"}, "unknown hidden_act"),
        ({"head_dim": 11}, "must be even"),
        ({"num_key_value_heads": 2}, "not a multiple of num_key_value_heads 2"),
        ({"position_offset": 2}, "position_offset"),
        ({**RELATIVE, "relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3"),
    ):
        with pytest.raises(Exception, match=message):
            make_config(config_class, **fields)


def test_an_odd_head_size_is_refused_for_rotary_only(make_config, batch):
    config = make_config(head_dim=11, position_embedding_type="learned")
    assert DeceroEncoderModel(config)(**batch)[0].isfinite().all()
