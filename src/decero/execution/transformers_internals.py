"""All that decero touches inside transformers and huggingface_hub: each may move with any release of theirs.

Code that is not exported imports it from here; what travels with a checkpoint, from `decero.models.compatibility`.
Each name has a test of its own in tests/execution/test_transformers_internals.py, which says in one line what moved.

    layers of a cache        DynamicLayer, Cache.layers, layer_class_to_replicate        decoding
    a loop of our own        generate(custom_generate=...) and the name of the cache     decoding
    whose rows may leave     _supports_default_dynamic_cache, _is_stateful,              decoding
                             is_remote_code
    attention by name        AttentionInterface, AttentionMaskInterface, sdpa_mask,      flex, matmul, explain
                             eager_mask, config._attn_implementation(_internal), _supports_*
    a mask taken as it is    what the mask builders do with 4 dimensions                 packed rows
    heads of an Auto class   _model_mapping, MODEL_FOR_..._MAPPING_NAMES                 presets, model cards, commands
    layers to recompute      GradientCheckpointingLayer                                  sharding, memory
    exported code            get_relative_import_files                                   remote code
    a refused configuration  StrictDataclassError                                        presets, checkpoints
    boxes of every layer     intermediate_hidden_states, class_labels_classifier, bbox_predictor of DETR    detection
    T5's cache of generate   config.num_layers, where the decoder has more               decoding, explain, hub
    the head size of layers  per_layer_attributes, per_layer_config                      forecasts, flex
    order of the tokens      see position_modules.py                                     explain
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AttentionInterface, AutoModelForMaskedLM, Cache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from decero.models import AUTO_CLASSES, DeceroDecoderConfig
from decero.models.compatibility import CACHE, NAMES

__all__ = [
    "CACHE",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "NAMES",
    "AnyKernel",
    "DynamicLayer",
    "GradientCheckpointingLayer",
    "StrictDataclassError",
    "attending_with",
    "attention_of",
    "fills_holes",
    "flex_attention_forward",
    "generate_with",
    "get_relative_import_files",
    "handed_cache",
    "has_short_cache",
    "head_sizes",
    "heads_of",
    "heads_on_layers",
    "holds_rows",
    "register_attention",
    "remembers_keys",
    "remembers_states",
    "replace_layers",
    "sdpa_attention_forward",
    "supports",
    "takes_cache",
]


def has_short_cache(model: PreTrainedModel) -> bool:
    """Tell whether `generate` of transformers 5.24 gives the cache too few layers: in T5, the number of the encoder."""
    config: Any = model.config
    return config.model_type == "t5" and config.num_decoder_layers > config.num_layers


def head_sizes(config: Any) -> list[int]:
    """Return the size of an attention head in each layer of the encoder, or of the only stack.

    Configurations name it `head_dim` or `d_kv` (T5), else it follows from the width. Gemma 4 has one for each layer:
    reading its `head_dim` raises an error, which is why `per_layer_attributes` is asked first.
    """
    layers = getattr(config, "num_hidden_layers", None) or 1
    varied = "head_dim" in (getattr(config, "per_layer_attributes", None) or ())
    stacks = [config.per_layer_config[i] for i in range(layers)] if varied else [config] * layers
    return [
        getattr(each, "head_dim", None)
        or getattr(each, "d_kv", None)
        or config.hidden_size // (getattr(config, "num_attention_heads", None) or 1)
        for each in stacks
    ]


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention kernel that a model has."""
    return model.config._attn_implementation


class AnyKernel:
    """Say for a model of several parts that its parts choose the attention kernel."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True


def supports(model: PreTrainedModel, kernel: str) -> bool:
    """Whether a model's class says that it runs with a kernel: `sdpa`, `flex_attn`."""
    return bool(getattr(model, f"_supports_{kernel}", False))


def register_attention(name: str, function: Callable[..., Any], *, eager: bool = False) -> None:
    """Make a kernel known under a name; its masks are made as for sdpa, or as for eager attention."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, eager_mask if eager else sdpa_mask)


@contextmanager
def attending_with(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Give a model another attention kernel for a while.

    A family with attention code of its own ignores all kernels but `eager`. That one is written into its configuration,
    because some families read it there when they run, for their masks too.
    """
    configs = [model.config, *(each.config for each in model.modules() if isinstance(each, PreTrainedModel))]
    for config in configs:  # the list grows: a configuration may hold others
        parts = (getattr(config, part, None) for part in getattr(config, "sub_configs", {}))
        configs += [part for part in parts if part is not None and all(part is not each for each in configs)]
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        model.set_attn_implementation(name)
        if name == "eager":
            for config in configs:
                config._attn_implementation_internal = name
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel


def heads_of(auto_class: Any, config_class: type) -> tuple[Any, ...]:
    """The classes that an Auto class makes of a configuration, ours among them; none where it knows none."""
    found = auto_class._model_mapping.get(config_class, None)
    return found if isinstance(found, tuple) else () if found is None else (found,)


def heads_on_layers(model: Any, inputs: dict[str, Any], auxiliary: bool) -> list[tuple[Any, Any]]:
    """Run a model that finds objects; return logits and boxes of its last layer, then those of the layers before it.

    Stock DETR computes the latter only inside its own loss; its decoder hands on the hidden states where its
    configuration has `auxiliary_loss`. A model that returns `auxiliary_outputs` is taken at its word.
    """
    bare, kept = getattr(model, "module", model), list[Any]()
    hook = bare.base_model.register_forward_hook(
        lambda module, _, output: kept.append(getattr(output, "intermediate_hidden_states", None))
    )
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    found = [(output.logits, output.pred_boxes)]
    if not auxiliary:
        return found
    if (given := getattr(output, "auxiliary_outputs", None)) is not None:
        return found + [(each["logits"], each["pred_boxes"]) for each in given]
    hidden = kept[-1] if kept else None
    if hidden is None or not hasattr(bare, "class_labels_classifier"):
        return found
    return found + [(bare.class_labels_classifier(each), bare.bbox_predictor(each).sigmoid()) for each in hidden[:-1]]


def fills_holes(config_class: type) -> bool:
    """Whether models of a configuration are trained to fill holes. A decoder of ours is, but only beside writing."""
    return bool(heads_of(AutoModelForMaskedLM, config_class)) and config_class is not DeceroDecoderConfig


def takes_cache(parameters: Iterable[str]) -> bool:
    """Whether a forward pass with these parameters remembers what it read: only what writes does."""
    return not set(NAMES).isdisjoint(parameters)


def remembers_keys(model: PreTrainedModel) -> bool:
    """Whether what a model remembers are keys and values, as transformers' dynamic cache holds them."""
    if model._is_stateful:
        return False
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    supported = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    return supported() and kinds <= {"full_attention", "sliding_attention"}


def remembers_states(model: PreTrainedModel) -> bool:
    """Whether a model of ours remembers a state: it has the size of one token, and no token can be taken back."""
    return bool(model._is_stateful) and type(model.config) in AUTO_CLASSES


def holds_rows(model: PreTrainedModel) -> bool:
    """Whether rows may leave what a model remembers, and padding is heeded. Of code from the hub it is not known."""
    return (remembers_keys(model) or remembers_states(model)) and not model.is_remote_code()


def generate_with(model: PreTrainedModel, loop: Callable[..., Any], **inputs: Any) -> Any:
    """Let transformers prepare all that generating needs, then call `loop(model, input_ids, ..., **state)`."""
    return model.generate(**inputs, custom_generate=loop)  # type: ignore[operator]


def handed_cache(state: dict[str, Any]) -> Cache:
    """The cache that `generate` hands to a loop, by whichever name."""
    found = [state[name] for name in NAMES if state.get(name) is not None]
    if not found:
        raise RuntimeError(f"transformers hands no cache to custom_generate, only {', '.join(sorted(state))}")
    return found[0]


def replace_layers(cache: Cache, layer_class: type[DynamicLayer]) -> None:
    """Have an empty cache remember what is written in layers of `layer_class`; those with a window stay as they are."""
    crossed = isinstance(cache, EncoderDecoderCache)
    own: Any = cache.self_attention_cache if crossed else cache  # type: ignore[attr-defined]
    own.layers = [layer_class() if type(layer) is DynamicLayer else layer for layer in own.layers]
    own.layer_class_to_replicate = layer_class  # for what is missing: transformers counts T5's encoder
    if crossed:
        cache.cross_attention_cache.layer_class_to_replicate = DynamicLayer  # type: ignore[attr-defined]
