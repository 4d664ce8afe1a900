"""What the tables share: our fields that whole families hold fast."""

from typing import Any

POST_NORM = {"norm_placement": "post", "final_norm": False}
PRE_NORM = {"norm_placement": "pre", "final_norm": True}
LAYER_NORM = {"norm_type": "layernorm", "norm_bias": True}
RMS_NORM = {"norm_type": "rmsnorm"}
BIASES = {"attention_bias": True, "mlp_bias": True}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}


def whole_heads(stock: Any) -> dict[str, Any]:
    """Heads that share the hidden size out among them, keys and values of their own."""
    return {
        "head_dim": stock.hidden_size // stock.num_attention_heads,
        "num_key_value_heads": stock.num_attention_heads,
    }
