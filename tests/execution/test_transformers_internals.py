"""One test a hook into transformers and huggingface_hub: when a release moves it, one line says what broke."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForObjectDetection,
    AutoModelForSeq2SeqLM,
    BertConfig,
    DetrConfig,
    DynamicCache,
    EncoderDecoderCache,
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    XLNetConfig,
)
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from decero.execution import transformers_internals as internals
from decero.execution.transformers_internals import CACHE
from decero.models import DeceroDecoderConfig, DeceroDecoderForCausalLM, DeceroEncoderConfig

SIZES = {"vocab_size": 37, "n_embd": 33, "n_layer": 2, "n_head": 3, "n_positions": 17}
T5 = {"vocab_size": 37, "d_model": 33, "d_kv": 14, "d_ff": 41, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3}


@pytest.fixture
def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=2, eos_token_id=1, pad_token_id=0)).eval()


def handed(model, **inputs):
    """What `generate` hands to a loop."""
    got = {}

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
        got.update(state)
        return input_ids

    internals.generate_with(model, loop, **inputs, max_new_tokens=3)
    return got


def test_generate_hands_a_cache_to_a_loop_of_ours(gpt2):
    state = handed(gpt2, input_ids=torch.tensor([[5, 6, 7]]))
    assert isinstance(state.get(CACHE), DynamicCache), f"custom_generate is handed no {CACHE}, only {sorted(state)}"
    assert internals.handed_cache(state) is state[CACHE]
    assert internals.handed_cache({"past_key_values": 3, "cache": None}) == internals.handed_cache({"cache": 3}) == 3
    with pytest.raises(RuntimeError, match="hands no cache to custom_generate, only attention_mask"):
        internals.handed_cache({"attention_mask": 1})


def test_generate_hands_mask_and_encoder_outputs_to_our_loop(gpt2):
    state = handed(gpt2, input_ids=torch.tensor([[0, 6, 7]]), attention_mask=torch.tensor([[0, 1, 1]]))
    assert state.get("attention_mask") is not None, f"custom_generate is handed no mask, only {sorted(state)}"
    t5 = AutoModelForSeq2SeqLM.from_config(T5Config(**T5, decoder_start_token_id=0))
    state = handed(t5, input_ids=torch.tensor([[5, 6, 7]]))
    assert state["encoder_outputs"][0].shape == (1, 3, 33), "custom_generate is handed no encoder_outputs"
    assert isinstance(internals.handed_cache(state), EncoderDecoderCache), "the cache of T5 has no two halves"


def test_a_stock_forward_pass_takes_the_cache_by_its_name(gpt2):
    names = inspect.signature(gpt2.forward).parameters
    assert CACHE in names, f"GPT-2 takes no {CACHE}"
    assert internals.takes_cache(names)
    assert internals.takes_cache(["past_key_values"])
    assert internals.takes_cache(["cache"])
    assert not internals.takes_cache(["input_ids", "use_cache"])


@pytest.mark.parametrize("config", [None, GPT2Config(**SIZES)], ids=["lazy", "by configuration"])
def test_layers_of_a_cache_can_be_others(config):
    class Layer(internals.DynamicLayer):
        pass

    cache = DynamicCache(config=config)
    internals.replace_layers(cache, Layer)
    keys = torch.randn(1, 3, 5, 11)
    cache.update(keys, keys, 0)
    cache.update(keys, keys, 1)
    kinds = [type(layer) for layer in cache.layers]
    assert kinds == [Layer, Layer], "Cache.layers or layer_class_to_replicate no longer says what a cache is made of"


def test_layers_of_the_encoders_half_stay_as_they_are():
    class Layer(internals.DynamicLayer):
        pass

    cache, keys = EncoderDecoderCache(DynamicCache(), DynamicCache()), torch.randn(1, 3, 5, 11)
    internals.replace_layers(cache, Layer)
    cache.self_attention_cache.update(keys, keys, 0)
    cache.cross_attention_cache.update(keys, keys, 0)
    assert type(cache.self_attention_cache.layers[0]) is Layer, "EncoderDecoderCache hides its self_attention_cache"
    assert type(cache.cross_attention_cache.layers[0]) is internals.DynamicLayer


def test_a_layer_with_a_window_stays_as_it_is():
    config = DeceroDecoderConfig(num_hidden_layers=2, sliding_window=3)
    cache = DynamicCache(config=config)
    before = [type(layer) for layer in cache.layers]
    internals.replace_layers(cache, type("Layer", (internals.DynamicLayer,), {}))
    assert [type(layer) for layer in cache.layers if type(layer) in before], "DynamicSlidingWindowLayer is replaced"


def test_a_layer_of_a_cache_has_the_parts_that_ours_replace():
    for name in ("update", "get_seq_length", "lazy_initialization", "batch_select_indices"):
        assert hasattr(internals.DynamicLayer, name), f"DynamicLayer has no {name}"
    layer = internals.DynamicLayer()
    assert layer.is_initialized is False, "DynamicLayer.is_initialized is gone"
    layer.update(torch.zeros(1, 2, 3, 5), torch.ones(1, 2, 3, 5))
    assert layer.keys.shape == layer.values.shape == (1, 2, 3, 5), "DynamicLayer.keys and .values are gone"


def test_whose_memory_is_keys_and_values_is_told(gpt2):
    assert internals.remembers_keys(gpt2), "_supports_default_dynamic_cache says no of GPT-2"
    assert internals.holds_rows(gpt2), "is_remote_code says yes of GPT-2"
    xlnet = AutoModelForCausalLM.from_config(XLNetConfig(vocab_size=37, d_model=33, n_layer=1, n_head=3, d_inner=41))
    assert not internals.remembers_keys(xlnet), "_supports_default_dynamic_cache says yes of XLNet"
    state = DeceroDecoderForCausalLM(DeceroDecoderConfig(mixer_type="gru", position_embedding_type="none"))
    assert internals.remembers_states(state), "_is_stateful says no of a GRU"
    assert internals.holds_rows(state)
    assert not internals.remembers_keys(state), "_is_stateful does not hide a state"
    assert not internals.remembers_states(gpt2)
    gpt2.is_remote_code = lambda: True
    assert internals.remembers_keys(gpt2)
    assert not internals.holds_rows(gpt2)


def test_attention_is_known_and_set_by_name(gpt2):
    assert internals.attention_of(gpt2) == "sdpa", "config._attn_implementation does not name the kernel"
    gpt2.set_attn_implementation("eager")
    assert internals.attention_of(gpt2) == "eager", "set_attn_implementation does not set _attn_implementation"


def test_what_a_class_supports_is_told(gpt2):
    ours = DeceroDecoderForCausalLM(DeceroDecoderConfig(vocab_size=37, hidden_size=32, num_hidden_layers=1))
    for kernel in ("sdpa", "flex_attn"):
        assert internals.supports(ours, kernel)
        assert hasattr(gpt2, f"_supports_{kernel}"), f"_supports_{kernel} is gone"
    assert not internals.supports(gpt2, "no such kernel")


def test_our_kernel_is_called_by_name_with_the_mask_of_sdpa(gpt2):
    seen = []

    def kernel(module, q, k, v, mask, **kwargs):
        seen.append(mask)
        return internals.sdpa_attention_forward(module, q, k, v, mask, **kwargs)

    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected = gpt2(ids, attention_mask=mask).logits
    internals.register_attention("of a test", kernel)
    try:
        gpt2.set_attn_implementation("of a test")
        got = gpt2(ids, attention_mask=mask).logits
    finally:
        AttentionInterface._global_mapping.pop("of a test", None)
    assert len(seen) == 2, "AttentionInterface.register does not make a kernel known"
    assert seen[0] is not None, "AttentionMaskInterface.register does not make the mask of sdpa for it"
    assert seen[0].dtype == torch.bool, "AttentionMaskInterface.register does not make the mask of sdpa for it"
    assert torch.equal(got, expected)


def test_a_mask_of_four_dimensions_is_taken_as_it_is(gpt2):
    mask, hidden = torch.rand(2, 1, 3, 3) > 0.5, torch.zeros(2, 3, 33)
    made = create_causal_mask(config=gpt2.config, inputs_embeds=hidden, attention_mask=mask, **{CACHE: None})
    assert made is mask, "create_causal_mask changes a ready-made mask, which packed rows give"
    made = create_bidirectional_mask(config=gpt2.config, inputs_embeds=hidden, attention_mask=mask)
    assert made is mask, "create_bidirectional_mask changes a ready-made mask, which packed rows give"


def test_kernels_that_ours_call_take_what_ours_give():
    for kernel in (internals.sdpa_attention_forward, internals.flex_attention_forward):
        names = list(inspect.signature(kernel).parameters)
        assert names[:5] == ["module", "query", "key", "value", "attention_mask"], f"{kernel.__name__} takes {names}"


def test_detr_hands_on_the_states_of_every_layer():
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 3, "num_queries": 2, "backbone_config": backbone}
    sizes |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "auxiliary_loss": True, "num_labels": 3}
    model = AutoModelForObjectDetection.from_config(DetrConfig(**sizes)).eval()
    with torch.no_grad():
        found = internals.heads_on_layers(model, {"pixel_values": torch.ones(1, 3, 32, 32)}, auxiliary=True)
    assert [(*logits.shape, *boxes.shape) for logits, boxes in found] == [(1, 2, 4, 1, 2, 4)] * 3
    assert not torch.equal(found[0][0], found[1][0])
    assert len(internals.heads_on_layers(model, {"pixel_values": torch.ones(1, 3, 32, 32)}, auxiliary=False)) == 1


def test_heads_of_an_auto_class_are_known_ours_among_them():
    assert internals.heads_of(AutoModelForCausalLM, GPT2Config) == (GPT2LMHeadModel,), "_model_mapping has no GPT-2"
    assert internals.heads_of(AutoModelForCausalLM, DeceroDecoderConfig) == (DeceroDecoderForCausalLM,)
    assert internals.heads_of(AutoModelForCausalLM, DeceroEncoderConfig) == ()
    funnel = type(AutoConfig.for_model("funnel"))
    assert len(internals.heads_of(AutoModel, funnel)) == 2, "an Auto class with two heads for one configuration"


def test_tables_of_heads_name_the_classes():
    tables = {
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": ("gpt2", "GPT2LMHeadModel"),
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES": ("bert", "BertForMaskedLM"),
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": ("bert", "BertForQuestionAnswering"),
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": ("t5", "T5ForConditionalGeneration"),
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": ("bert", "BertForSequenceClassification"),
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": ("bert", "BertForTokenClassification"),
    }
    for table, (kind, name) in tables.items():
        assert getattr(internals, table)[kind] == name, f"modeling_auto.{table} does not name {name}"


def test_layers_of_stock_models_are_told_by_their_class():
    bert = AutoModelForMaskedLM.from_config(BertConfig(vocab_size=37, hidden_size=36, num_attention_heads=3))
    layers = [m for m in bert.modules() if isinstance(m, internals.GradientCheckpointingLayer)]
    assert len(layers) == 12, "layers of BERT are no GradientCheckpointingLayer"


def test_files_that_a_model_needs_are_found():
    paths = internals.get_relative_import_files(inspect.getfile(DeceroDecoderForCausalLM))
    found = {path.rpartition("/")[2] for path in paths}
    missing = {"attention.py", "compatibility.py", "configuration_decero.py"} - found
    assert not missing, f"get_relative_import_files does not find {missing}"


def test_a_configuration_that_is_refused_raises_what_ours_catch():
    with pytest.raises(internals.StrictDataclassError):
        DeceroEncoderConfig(hidden_size="wide")


def test_nobody_goes_round_the_table():
    """The words of its rows stand in no other module: whoever needs one imports it from there."""
    words = re.compile(
        r"_attn_implementation|_model_mapping|_supports_|is_remote_code|custom_generate|layer_class_to_replicate|"
        r"transformers\.(modeling_layers|masking_utils|cache_utils|dynamic_module_utils|integrations|models)\b|"
        r"AttentionInterface|errors import StrictDataclassError"
    )
    root = Path(internals.__file__).parents[1]
    for path in root.rglob("*.py"):
        if path.parent.name != "models" and path != Path(internals.__file__):
            text = path.read_text(encoding="utf-8").replace("set_attn_implementation", "")
            found = words.search(text)
            assert found is None, f"{path}: {found[0]} belongs into transformers_internals.py"


def test_parts_of_a_model_may_choose_their_kernel():
    named = [name for name in vars(internals.AnyKernel) if name.startswith("_supports")]
    assert named
    assert all(getattr(PreTrainedModel, name) is False for name in named), "PreTrainedModel has other _supports_ fields"


def test_a_kernel_is_lent_and_put_back(gpt2):
    calls = []

    def kernel(module, query, key, value, attention_mask, **kwargs):
        calls.append(attention_mask)
        return value.transpose(1, 2), None

    internals.register_attention("decero_test", kernel, eager=True)
    ids = torch.tensor([[5, 6, 7]])
    before = gpt2(ids).logits

    def fails():
        with internals.attending_with(gpt2, "decero_test"):
            assert internals.attention_of(gpt2) == internals.attention_of(gpt2.transformer) == "decero_test"
            gpt2(ids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert len(calls) == 2, "a registered kernel is not called"
    assert calls[0][0, 0, 0, 1] == torch.finfo(torch.float32).min, "eager_mask gives no additive mask"
    assert internals.attention_of(gpt2) == internals.attention_of(gpt2.transformer) == "sdpa"
    assert torch.equal(gpt2(ids).logits, before)


def test_eager_reaches_a_family_with_code_of_its_own():
    """Falcon adds a boolean mask to its scores when sdpa is asked for attentions: it reads the name when it runs."""
    config = FalconConfig(vocab_size=37, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    model = FalconModel(config).eval()
    with internals.attending_with(model, "eager"):
        weights = model(torch.tensor([[5, 6, 7]]), output_attentions=True).attentions[0]
    assert weights.triu(1).max() == 0, "Falcon no longer reads config._attn_implementation_internal for its mask"
    assert internals.attention_of(model) == "sdpa"
