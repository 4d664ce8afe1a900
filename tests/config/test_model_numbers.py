"""Numbers of a model's configuration: absurd ones are refused before a model of that size is built."""

import pytest

from decero.config.benchmark import Shape
from decero.config.model_numbers import check_model_numbers
from decero.execution.build import read_preset

BAD = {
    "hidden_size": 0, "vocab_size": -5, "num_hidden_layers": 10**6, "decoder_layers": -1, "n_layer": 10**9,
    "intermediate_size": 2**40, "hidden_dropout_prob": 1.01, "attn_pdrop": -0.1, "dropout": float("nan"),
    "layer_norm_eps": float("inf"), "rope_theta": 0, "eos_token_id": -2, "head_dim": 0, "num_labels": 0,
    "other": 10**20,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_absurd_number_is_named_with_its_bounds(name):
    for fields, path in (({name: BAD[name]}, f"a.{name}"), ({"text": {name: [BAD[name]]}}, f"a.text.{name}")):
        with pytest.raises(ValueError, match=rf"^{path} is {BAD[name]}; give a number from \S+ to \S+$"):
            check_model_numbers(fields, "a")


def test_ordinary_numbers_pass():
    fields = {"hidden_size": 8, "type_vocab_size": 0, "pad_token_id": -1, "dropout": 1, "tie_word_embeddings": False}
    check_model_numbers(fields | {"sliding_window": None, "id2label": {0: "a"}, "ignore_index": -100}, "a")


def test_a_preset_and_a_benchmark_are_checked(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("model_type: decero_encoder\nnum_hidden_layers: -1\n")
    with pytest.raises(ValueError, match="num_hidden_layers is -1; give a number from 0 to 10000"):
        read_preset(str(path), {})
    with pytest.raises(ValueError, match=r"overrides\.hidden_size is 0"):
        Shape(config="x", overrides={"hidden_size": 0})
