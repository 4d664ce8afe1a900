"""Parts that several tables share: values of our fields that are fixed in a family."""

from typing import Any

POST_NORM = {"norm_placement": "post", "final_norm": False}
PRE_NORM = {"norm_placement": "pre", "final_norm": True}
LAYER_NORM = {"norm_type": "layernorm", "norm_bias": True}
RMS_NORM = {"norm_type": "rmsnorm"}
BIASES = {"attention_bias": True, "mlp_bias": True}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}


def whole_heads(stock: Any) -> dict[str, Any]:
    """Multi-head attention: the heads divide the hidden size, and each has its own keys and values."""
    return {
        "head_dim": stock.hidden_size // stock.num_attention_heads,
        "num_key_value_heads": stock.num_attention_heads,
    }


def rope_to_ours(rope: dict[str, Any]) -> dict[str, Any]:
    """Our two fields for `rope_parameters` of a stock class, which hold the base of the waves, too."""
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "rope_theta": rope["rope_theta"],
        "rope_parameters": None if scaling == {"rope_type": "default"} else scaling,
    }


def rope_to_stock(ours: Any) -> dict[str, Any]:
    return {**(ours.rope_parameters or {"rope_type": "default"}), "rope_theta": ours.rope_theta}
