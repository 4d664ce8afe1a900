"""List the accelerators that `--dry-run --device NAME` can forecast for.

The numbers are from the data sheets of the vendors.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from decero.errors import UserError, did_you_mean

HALF = 700  # hidden_size at which training reaches half of an accelerator's `reached`; narrow matrices use it badly
UNFITTED = 0.5  # `reached` of an accelerator without published runs


@dataclass(frozen=True)
class Device:
    """Describe one accelerator.

    bf16, fp32: dense peak FLOP/s of matrix products at that precision. fp32 means TF32, because runs enable it.
    memory: bytes. bandwidth: bytes/s between memory and cores. reached: share of the peak that training of a very wide
    model reaches, fitted to published runs (configs/benchmark/scale.yaml).
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    reached: float = UNFITTED

    def share(self, width: int) -> float:
        """Return the share of the peak that a model of this hidden_size is expected to reach."""
        return self.reached * width / (width + HALF)

    def flops(self, precision: str, width: int) -> float:
        """Return the expected FLOP/s at a `training.mixed_precision`: `share` times the peak."""
        return self.share(width) * (self.bf16 if precision == "bf16" else self.fp32)


DEVICES = {
    "a100": Device("A100 SXM 80 GB", 312e12, 156e12, 80e9, 2.039e12, 0.7),
    "h100": Device("H100 SXM 80 GB", 989e12, 494e12, 80e9, 3.35e12, 0.52),
    "h200": Device("H200 SXM 141 GB", 989e12, 494e12, 141e9, 4.8e12, 0.52),
    "l4": Device("L4 24 GB", 121e12, 60e12, 24e9, 0.3e12),
    "t4": Device("T4 16 GB", 8.1e12, 8.1e12, 16e9, 0.32e12),  # its tensor cores support neither bf16 nor TF32
    "rtx4090": Device("RTX 4090 24 GB", 165.2e12, 82.6e12, 24e9, 1.008e12),
    "mi300x": Device("MI300X 192 GB", 1307e12, 653.7e12, 192e9, 5.3e12),
}


def device_of(driver_name: str) -> Device | None:
    """Find the data sheet of an accelerator by the name that its driver gives, such as NVIDIA H100 80GB HBM3.

    None for one that is not listed, and for the slower variants of a listed one (PCIe, NVL, MIG, laptops).
    """
    words = re.findall(r"[a-z0-9]+", driver_name.lower())
    if {"pcie", "nvl", "mig", "laptop", "d"}.intersection(words):
        return None
    names = {*words, *(a + b for a, b in pairwise(words))}  # also rtx + 4090
    return next((device for key, device in DEVICES.items() if key in names), None)


def find_device(name: str) -> Device:
    """Find an accelerator by name, ignoring case, spaces and dashes.

    Raises UserError with the nearest name, or with all names.
    """
    plain = "".join(c for c in name.lower() if c.isalnum())
    if plain not in DEVICES:
        near = did_you_mean(plain, DEVICES) or f"; known: {', '.join(DEVICES)}"
        raise UserError(f"--device: unknown accelerator {name}{near}")
    return DEVICES[plain]
