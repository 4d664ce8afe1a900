"""Say which weights of a single stack each device may hold, in the words of transformers.

Tensor parallelism: Shoeybi et al. 2019, section 3. A matrix is cut along its outputs (colwise), the next one along its
inputs (rowwise), and the results are summed. So each device computes some heads and some features of the MLP.
"""


def tensor_plan(config):
    """Return module -> how it is cut.

    Attention with relative positions stays whole, for its biases belong to all heads. So do other mixers. The table of
    tokens is cut as the head is, because they may be one tensor.
    """
    layer, plan = "layers.*.", {"embed_tokens": "embedding_rowwise"}
    if config.mixer_type == "attention" and config.position_embedding_type != "relative":
        plan |= {f"{layer}self_attn.{name}_proj": "colwise" for name in "qkv"}
        plan |= {f"{layer}self_attn.o_proj": "rowwise"}
    plan |= {f"{layer}mlp.gate_proj": "colwise"} if config.gated_mlp else {}
    return plan | {f"{layer}mlp.up_proj": "colwise", f"{layer}mlp.down_proj": "rowwise"}


def pipeline_plan(config):
    """Return module -> (what it reads, what it gives), in order; None where embeddings are more than a lookup.

    A later stage reads hidden states as `inputs_embeds`. They must not be scaled, normed or given positions again.
    """
    added = config.position_embedding_type not in ("rotary", "none") or config.type_vocab_size
    narrow = config.embedding_size not in (None, config.hidden_size)
    if added or narrow or config.scale_embeddings or config.embedding_norm or config.mixer_type != "attention":
        return None
    return {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
