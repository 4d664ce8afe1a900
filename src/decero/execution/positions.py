"""How many tokens a model reads, and at which position the first one stands."""

from typing import Any

from transformers import PreTrainedModel


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: 0, or behind the padding id, as RoBERTa's family counts.

    Those models have a row for padding in their table of positions; the table itself says which.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def positions_of(model: PreTrainedModel, decoder: bool = False) -> int | None:
    """How many tokens a text may have, special ones included; None is no limit.

    decoder: of what a model writes, where it reads and writes with different parts.
    """
    config: Any = model.config.get_text_config(decoder=decoder)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - first_position(model) if positions and positions > 0 else None
