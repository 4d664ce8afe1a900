"""How many positions a model has, and which number the first one has."""

from typing import Any

from transformers import PreTrainedModel


def first_position(model: PreTrainedModel) -> int:
    """Return the position number of the first token: 0, or padding id + 1 for models like RoBERTa.

    Those models have a padding row in their position table, so the table is asked.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def positions_of(model: PreTrainedModel, decoder: bool = False) -> int | None:
    """Return how many tokens a text may have, with special tokens; None means no limit.

    Dynamic rotary positions reach `factor` times as far as `max_position_embeddings`, the length that was trained.
    decoder: count the positions of the decoder, for a model that has an encoder too.
    """
    config: Any = model.config.get_text_config(decoder=decoder)
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None)
    if positions and isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
        positions = int(positions * rope["factor"])
    return positions - first_position(model) if positions and positions > 0 else None
