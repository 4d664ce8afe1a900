"""Both cache names and unknown arguments, for every class and version of transformers."""

import dataclasses
import inspect

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from decero.models import (
    AUTO_CLASSES,
    DeceroDecoderConfig,
    DeceroDetectionConfig,
    DeceroDiffusionConfig,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroRecurrentForSequenceClassification,
    DeceroRecurrentForTokenClassification,
    DeceroRecurrentSeq2SeqConfig,
    DeceroTextCNNConfig,
    DeceroVisionConfig,
)
from decero.models import compatibility as compat
from decero.models.compatibility import CACHE, COMMON, NAMES

CLASSES = [(config, head) for config, heads in AUTO_CLASSES.items() for head in dict.fromkeys(heads.values())]
CACHELESS = (DeceroEncoderConfig, DeceroTextCNNConfig, DeceroVisionConfig, DeceroDetectionConfig, DeceroDiffusionConfig)
TWO_TEXTS = (DeceroEncoderDecoderConfig, DeceroRecurrentSeq2SeqConfig)
RETURN_NONE = ("ForTokenClassification", "QuestionAnswering")  # heads that take a cache and return none


def reads_once(config_class, head):
    """Whether a model takes no cache."""
    return (
        config_class in CACHELESS
        or head in (DeceroRecurrentForSequenceClassification, DeceroRecurrentForTokenClassification)
        or head.__name__.endswith("ForMaskedLM")
        or head.__module__.endswith("modeling_encoder_decoder_heads")
    )


REMEMBER = [
    (config, head)
    for config, head in CLASSES
    if not reads_once(config, head) and not head.__name__.endswith(RETURN_NONE)
]
IDS = {"bos_token_id": 2, "eos_token_id": 1}
VISION = {"image_size": [8, 12], "patch_size": 4, "num_channels": 2}
DETECTION = {"patch_size": 4, "num_channels": 2, "hidden_size": 34, "num_queries": 3}
FIELDS = {
    DeceroVisionConfig: VISION,
    DeceroDetectionConfig: DETECTION,
    DeceroDiffusionConfig: VISION,
    DeceroRecurrentSeq2SeqConfig: IDS | {"hidden_size": 34},  # each direction of its encoder has half
}


def name_of(value):
    return value.__name__ if isinstance(value, type) else None


@pytest.fixture
def make(make_config, randomize):
    def build(config_class, head):
        torch.manual_seed(3)
        fields = FIELDS.get(config_class, IDS)
        return randomize(head(make_config(config_class, **fields))).eval()

    return build


def inputs_of(config_class, ids_BL, head):
    if config_class in TWO_TEXTS and "decoder_input_ids" in inspect.signature(head.forward).parameters:
        return {"input_ids": torch.tensor([[5, 9, 3, 7]]).expand(len(ids_BL), -1), "decoder_input_ids": ids_BL}
    if config_class in (DeceroVisionConfig, DeceroDetectionConfig):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 2 * 8 * 12).view(2, 2, 8, 12).sin()}
    if config_class is DeceroDiffusionConfig:
        return inputs_of(DeceroVisionConfig, ids_BL, head) | {"timestep": torch.tensor([0.2, 0.9])}
    return {"input_ids": ids_BL}


def first_output(out):
    return out[0]


# --- both names


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("config_class", "head"), REMEMBER, ids=name_of)
def test_a_cache_is_remembered_by_either_name(make, config_class, head, name):
    model = make(config_class, head)
    ids_BL = torch.randint(3, 37, (2, 7))
    whole = model(**inputs_of(config_class, ids_BL, head), use_cache=True)
    start = model(**inputs_of(config_class, ids_BL[:, :4], head), use_cache=True)
    rest = model(**inputs_of(config_class, ids_BL[:, 4:], head), **{name: getattr(start, name)}, use_cache=True)
    if "Classification" in head.__name__:
        assert_close(rest.logits, whole.logits, atol=2e-5, rtol=1e-4)
    else:
        assert_close(first_output(rest), first_output(whole)[:, 4:], atol=2e-5, rtol=1e-4)
    assert getattr(rest, NAMES[0]) is getattr(rest, NAMES[1]) is getattr(start, name)


@pytest.mark.parametrize(("config_class", "head"), REMEMBER, ids=name_of)
def test_both_names_at_once_are_an_error_unless_one_is_none(make, config_class, head):
    model, inputs = make(config_class, head), inputs_of(config_class, torch.randint(3, 37, (1, 5)), head)
    cache = model(**inputs, use_cache=True).cache
    with pytest.raises(TypeError, match="cache and past_key_values are the same argument"):
        model(**inputs, cache=cache, past_key_values=cache)
    size = cache.get_seq_length()
    model(**inputs, cache=cache, past_key_values=None)
    model(**inputs, cache=None, past_key_values=cache)
    assert cache.get_seq_length() == size + 10


def test_the_cache_may_be_positional_but_not_twice(make):
    model = make(DeceroDecoderConfig, AUTO_CLASSES[DeceroDecoderConfig][next(iter(AUTO_CLASSES[DeceroDecoderConfig]))])
    cache, ids_BL = DynamicCache(), torch.randint(3, 37, (1, 5))
    model(ids_BL, None, None, cache)
    assert cache.get_seq_length() == 5
    with pytest.raises(TypeError, match="past_key_values"):
        model(ids_BL, None, None, cache, cache=cache)


@pytest.mark.parametrize(("config_class", "head"), [pair for pair in REMEMBER if pair[1].can_generate()], ids=name_of)
def test_generate_continues_from_a_cache_by_the_installed_name(make, config_class, head):
    model = make(config_class, head)
    model.generation_config.eos_token_id = None
    ids_BL = torch.randint(3, 37, (1, 5))
    free = model.generate(ids_BL, max_new_tokens=9, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(ids_BL, max_new_tokens=9, do_sample=False), free)
    if config_class is DeceroDecoderConfig:
        begun = model.generate(ids_BL, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        then = model.generate(begun.sequences, **{CACHE: getattr(begun, CACHE)}, max_new_tokens=5, do_sample=False)
        assert torch.equal(then, free)


def test_a_layer_that_is_computed_again_does_not_remember_twice(make):
    """transformers removes the cache from checkpointed layers, by its own name for it."""
    model = make(DeceroDecoderConfig, next(iter(AUTO_CLASSES[DeceroDecoderConfig].values()))).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    cache = DynamicCache()
    model(torch.randint(3, 37, (1, 5)), cache=cache).last_hidden_state.sum().backward()
    assert cache.get_seq_length() == 0


# --- arguments that nothing reads


@pytest.mark.parametrize(("config_class", "head"), CLASSES, ids=name_of)
def test_a_misspelt_argument_is_an_error_with_the_nearest_name(make, config_class, head):
    model, inputs = make(config_class, head), inputs_of(config_class, torch.randint(3, 37, (2, 5)), head)
    others = {DeceroDetectionConfig: "pixel_mask", DeceroDiffusionConfig: "class_labels"}
    right = others.get(config_class, "attention_mask")
    wrong = right[:-2] + "ks"
    with pytest.raises(TypeError, match=rf"^{head.__name__} does not read {wrong}; did you mean {right}\?"):
        model(**inputs, **{wrong: torch.ones(2, 5)})
    with pytest.raises(TypeError, match=r"does not read something$"):
        model(**inputs, something=1)
    with torch.no_grad():
        assert_close(first_output(model(**inputs, something=None)), first_output(model(**inputs)))
    if not reads_once(config_class, head):
        with pytest.raises(TypeError, match=r"does not read chache; did you mean cache\?"):
            model(**inputs, chache=DynamicCache())


@pytest.mark.parametrize(("config_class", "head"), CLASSES, ids=name_of)
def test_arguments_of_every_stock_class_are_accepted(make, config_class, head):
    model, inputs = make(config_class, head), inputs_of(config_class, torch.randint(3, 37, (2, 5)), head)
    lengths = torch.tensor([0, 5, 10], dtype=torch.int32)
    common = {
        "output_attentions": False, "output_hidden_states": True, "return_dict": True, "use_cache": False,
        "num_items_in_batch": torch.tensor(3), "cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 5,
        "max_length_k": 5, "output_router_logits": False, "seq_idx": None,
    }  # fmt: skip
    assert common.keys() <= COMMON
    assert_close(first_output(model(**inputs, **common)), first_output(model(**inputs)))
    assert isinstance(model(**inputs, return_dict=False), tuple)


def test_unread_token_type_ids_give_a_warning(make, monkeypatch):
    said = []
    monkeypatch.setattr(compat.logger, "warning_once", said.append)
    config_class, head = REMEMBER[0]
    model, inputs = make(config_class, head), inputs_of(config_class, torch.randint(3, 37, (2, 5)), head)
    out = model(**inputs, token_type_ids=torch.ones(2, 5, dtype=torch.long))
    assert said == [f"{head.__name__} does not read token_type_ids; remove it"]
    assert_close(first_output(out), first_output(model(**inputs)))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_one_graph(make, name):
    config_class, head = REMEMBER[1]
    model, ids_BL = make(config_class, head), torch.randint(3, 37, (2, 5))
    cache, again = DynamicCache(config=model.config), DynamicCache(config=model.config)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(ids_BL, **{name: cache}).logits, model(ids_BL, **{name: again}).logits)
    assert cache.get_seq_length() == 5


def test_a_signature_is_that_of_the_forward_pass():
    for config_class, head in CLASSES:
        names = inspect.signature(head.forward).parameters
        assert head.main_input_name in names
        assert ("past_key_values" in names) is not reads_once(config_class, head)


# --- one test a hook into transformers: what moved, in one line


def test_hook_outputs_name_the_cache():
    names = {field.name for field in dataclasses.fields(compat.modeling_outputs.Seq2SeqLMOutput)}
    assert CACHE in names, f"outputs of transformers have neither of {NAMES}; compatibility.CACHE looks for it there"


def test_hook_mask_builders_use_the_cache_name_of_outputs():
    for builder in (create_causal_mask, create_sliding_window_causal_mask):
        assert CACHE in inspect.signature(builder).parameters, f"{builder.__name__} does not take {CACHE}"


def test_hook_layers_lose_the_cache_when_they_are_checkpointed():
    lines = inspect.getsource(GradientCheckpointingLayer)
    assert f'"{CACHE}" in kwargs' in lines, f"GradientCheckpointingLayer does not take {CACHE} from a layer's arguments"


def test_hook_common_arguments_are_told():
    assert {
        "output_attentions",
        "num_items_in_batch",
        "cu_seq_lens_q",
    } <= compat.TransformersKwargs.__optional_keys__, "TransformersKwargs no longer lists what every model takes"


def test_hook_attention_kernels_are_found_by_name(make_config):
    config = make_config(DeceroDecoderConfig)
    config._attn_implementation = "sdpa"
    assert compat.attention_function(config, None) is not None, "ALL_ATTENTION_FUNCTIONS does not know sdpa"
    config._attn_implementation = "eager"
    assert compat.attention_function(config, 7) == 7, "eager attention is not the model's own"


def test_hook_a_cache_of_two_halves_knows_what_it_holds():
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert compat.known_memory(cache, 0) is None, "EncoderDecoderCache.is_updated says yes of an empty cache"
    keys = torch.randn(1, 3, 5, 7)
    cache.cross_attention_cache.update(keys, keys + 1, 0)
    found = compat.known_memory(cache, 0)
    assert torch.equal(found[0], keys), "cross_attention_cache.layers[i].keys are not the keys"
    assert torch.equal(found[1], keys + 1), "cross_attention_cache.layers[i].values are not the values"
    assert compat.self_attention_cache(cache) is cache.self_attention_cache
    assert compat.self_attention_cache(None) is None


@pytest.mark.parametrize("name", ["decero_encoder", "decero_decoder", "decero_recurrent", "decero_vision"])
def test_a_configuration_has_an_auto_map_that_is_not_saved(name):
    config, other = (AutoConfig.for_model(name) for _ in range(2))
    assert (config.auto_map or {}) == {}, "TRL asks every configuration for one"
    assert "auto_map" not in config.to_dict()
    config.auto_map["AutoModel"] = "code.Model"  # as `register_for_auto_class` does
    assert config.to_dict()["auto_map"] == {"AutoModel": "code.Model"}
    assert other.auto_map == {}


@pytest.mark.parametrize("name", ["decero_encoder_decoder", "decero_recurrent_seq2seq"])
def test_generate_does_not_read_labels(name):
    """Seq2SeqTrainer hands them on when it predicts."""
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, vocab_size=37, hidden_size=32, bos_token_id=2))
    model.config.decoder_start_token_id = 2
    ids_BL = torch.randint(3, 37, (2, 5))
    wanted = {"max_new_tokens": 3, "do_sample": False, "decoder_start_token_id": 2}
    assert torch.equal(model.eval().generate(ids_BL, labels=ids_BL, **wanted), model.generate(ids_BL, **wanted))
