"""Find out whether this machine computes bf16 matrix products itself, and choose the precision of a run."""

import os
import platform
from pathlib import Path
from typing import Literal

import torch

from decero.config.devices import Device
from decero.config.sections import TrainingSection
from decero.config.yaml_files import read_yaml


def cpu_computes_bf16() -> bool | None:
    """Return whether the CPU has instructions for bf16 matrix products; None if that is unknown."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if machine in ("aarch64", "arm64") and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not for x86: there it includes emulation
    return None


def best_precision() -> Literal["no", "bf16"]:
    """Return `bf16` where the device of a run computes it itself, else `no`, which is fp32.

    An Apple GPU gets `no`: its bf16 was not tested.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        if torch.cuda.is_available():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
        if (other := torch.accelerator.current_accelerator(check_available=True)) is not None:
            return "bf16" if other.type == "xpu" else "no"
    return "bf16" if cpu_computes_bf16() else "no"


def settle_precision(training: TrainingSection, device: Device | None = None, recorded: Path | None = None) -> None:
    """Replace `mixed_precision: auto` by what a resumed run has recorded, or by what suits the device.

    device: the one of a forecast; None for this machine. recorded: config.yaml of the run, if it is resumed.
    """
    if training.mixed_precision != "auto":
        return
    before = read_yaml(recorded).get("training") if recorded and recorded.is_file() else None
    if isinstance(before, dict) and before.get("mixed_precision") in ("no", "bf16"):
        training.mixed_precision = before["mixed_precision"]
    elif device:
        training.mixed_precision = "bf16" if device.bf16 > device.fp32 else "no"
    else:
        training.mixed_precision = best_precision()
