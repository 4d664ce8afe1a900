"""Mark in a checkpoint's config.json which objective it learnt from, where that decides how its holes are filled."""

from collections.abc import Sequence
from typing import Any

from decero.errors import UserError

FIELD = "pretraining_objective"
PERMUTATION, HYBRID = "permutation_lm", "hybrid_lm"
DISCRIMINATORS = ("DeceroEncoderForPreTraining", "ElectraForPreTraining")  # one logit a token: was it replaced?


def objective_of(config: Any) -> str | None:
    """Return `permutation_lm`, `hybrid_lm`, or None: masked or causal language modelling, or not known."""
    return getattr(config, FIELD, None)


def mark_objective(config: Any, name: str | None) -> None:
    """Write the objective into a configuration. None removes that of the checkpoint that a run began with."""
    if name or objective_of(config):
        setattr(config, FIELD, name)


def is_discriminator(architectures: Sequence[str] | None) -> bool:
    """Return whether a checkpoint tells replaced tokens from original ones, by the classes that config.json names."""
    return bool(set(architectures or ()) & set(DISCRIMINATORS))


def refuse_discriminator(name: str, architectures: Sequence[str] | None) -> None:
    """Raise UserError for a discriminator where probabilities of tokens are needed."""
    if is_discriminator(architectures):
        raise UserError(
            f"{name}: a discriminator tells replaced tokens from original ones and gives no probabilities of tokens; "
            "use its generator (decero saves it in the folder generator beside model)"
        )
