"""The state that dropout draws from, as tensors that a checkpoint can hold."""

import torch


def random_state() -> dict[str, torch.Tensor]:
    """Return the states that dropout draws from. All other randomness is a function of (seed, epoch, example)."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
