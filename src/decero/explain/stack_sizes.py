"""Read the sizes of each stack of a model: from its configuration and, where that is silent, from its weights."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from decero.execution.positions import first_position

# Name in the output -> names in configurations; the first that has a value counts.
SIZES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_sizes"),
    "embedding_size": ("embedding_size",),
    "num_hidden_layers": ("num_hidden_layers", "num_layers", "n_layer", "depths"),
    "num_attention_heads": ("num_attention_heads", "num_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("qk_head_dim", "head_dim", "d_kv", "d_head"),
    "intermediate_size": (
        "intermediate_size",
        "ffn_dim",
        "d_ff",
        "d_inner",
        "hidden_dim",
        "n_inner",
        "ffn_hidden_size",
    ),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
    "image_size": ("image_size",),
    "patch_size": ("patch_size",),
}
LABELS = {
    "hidden_size": "hidden size", "embedding_size": "embedding size", "num_hidden_layers": "layers",
    "num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads", "head_dim": "head size",
    "intermediate_size": "feed-forward size", "num_experts": "experts", "num_experts_per_tok": "experts per token",
    "vocab_size": "vocabulary", "max_position_embeddings": "positions", "image_size": "image size",
    "patch_size": "patch size",
}  # fmt: skip
Size = int | list[int]


def dimensions_of(model: PreTrainedModel) -> dict[str, dict[str, Size]]:
    """Return the sizes of each stack of a model, named as in configurations. What it does not have is absent."""
    return {stack: _sizes(config, model, stack) for stack, config in _stacks(model.config).items()}


def _stacks(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    parts = {name.removesuffix("_config"): getattr(config, name, None) for name in config.sub_configs}
    named = {name: part for name, part in parts.items() if _first(part, "hidden_size") is not None}
    if named:
        return named  # type: ignore[return-value]
    if config.is_encoder_decoder:
        return {"encoder": config.get_text_config(encoder=True), "decoder": config.get_text_config(decoder=True)}
    return {"model": config}


def _first(config: Any, size: str) -> Size | None:
    for name in SIZES[size]:
        value = _value(config, name)
        if isinstance(value, list | tuple) and value and all(isinstance(each, int) for each in value):
            return list(value) if len(set(value)) > 1 else value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _value(config: Any, name: str) -> Any:
    """Return a field; of one that differs between layers, the distinct values."""
    if getattr(config, "is_heterogeneous", False) and name in config.per_layer_attributes:
        return list(dict.fromkeys(getattr(layer, name, None) for layer in config.per_layer_config))
    return getattr(config, name, None)


def _sizes(config: PreTrainedConfig, model: PreTrainedModel, stack: str) -> dict[str, Size]:
    found = {name: value for name in SIZES if (value := _first(config, name)) is not None}
    if stack == "decoder" and (layers := getattr(config, "num_decoder_layers", None)):
        found["num_hidden_layers"] = layers  # T5 names them apart
    hidden, heads = found.get("hidden_size"), found.get("num_attention_heads")
    if found.get("embedding_size") == hidden:
        found.pop("embedding_size", None)
    if isinstance(hidden, int) and isinstance(heads, int):
        found.setdefault("head_dim", hidden // heads)
        found.setdefault("num_key_value_heads", _key_value_heads(config, heads))
    if isinstance(hidden, int) and "intermediate_size" not in found and (inner := _inner(model, hidden)):
        found["intermediate_size"] = inner
    source = "max_source_positions" if stack == "encoder" else "max_target_positions"
    limit = found.pop("max_position_embeddings", None) or getattr(config, source, None)
    if isinstance(limit, int) and stack == "model":
        limit -= first_position(model)  # RoBERTa has 514 rows, and reads 512 tokens
    if limit:
        found["max_position_embeddings"] = limit
    return {name: found[name] for name in SIZES if name in found}


def _key_value_heads(config: PreTrainedConfig, heads: int) -> int:
    """Return the key-value heads of a family that does not name them as Llama does; Falcon has one for all."""
    if getattr(config, "new_decoder_architecture", False):
        return config.num_kv_heads
    return 1 if getattr(config, "multi_query", False) else heads


def _inner(model: PreTrainedModel, hidden: int) -> int | None:
    """Return the width of the feed-forward layers of a family whose configuration does not have it, such as GPT-2."""
    widths = {
        size
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and any(word in name for word in ("mlp", "ffn", "feed_forward"))
        for size in parameter.shape
        if hidden in parameter.shape and size != hidden
    }
    return min(widths, default=None)


def written(size: Size) -> str:
    """Format a size for people: `12,288`; those of several stages with commas between."""
    return ", ".join(f"{each:,}" for each in size) if isinstance(size, list) else f"{size:,}"
