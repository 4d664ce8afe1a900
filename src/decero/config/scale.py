"""Define runs on accelerators whose time and memory are computed, and what was published of them."""

from typing import Literal

from pydantic import Field, field_validator

from decero.config.devices import Device, find_device
from decero.config.sections import MOST_EXAMPLES, MOST_TOKENS, Section
from decero.config.shape import Shape


class ScaleRun(Section):
    kind: Literal["mlm", "causal", "seq2seq"] = Field("causal", description="what the model is trained for")
    model: Shape
    device: str = Field(description="accelerator, as for --device: a100, h100 ...")
    devices: int = Field(1, ge=1, le=1_000_000, description="number of accelerators")
    sharded: bool = Field(False, description="weights, gradients and optimizer are shared among them (FSDP)")
    rows: int = Field(description="rows of a step, on all devices together", ge=1, le=MOST_EXAMPLES)
    micro_rows: int = Field(description="rows that a device reads at once", ge=1, le=MOST_EXAMPLES)
    length: int = Field(description="tokens of a row", ge=8, le=MOST_TOKENS)
    written: int = Field(0, ge=0, le=MOST_TOKENS, description="kind seq2seq: tokens that the decoder writes for a row")
    scored: float = Field(1.0, gt=0, le=1, description="kind mlm: share of the tokens that are scored")
    gradient_checkpointing: bool = Field(False, description="layers run forward twice, which saves memory")
    tokens_per_s: float | None = Field(
        None, gt=0, le=1e12, description="published: tokens read a second on one device; not set: only a forecast"
    )
    memory_gb: float | None = Field(
        None, gt=0, le=1e6, description="published: peak memory of one device, in 1e9 bytes"
    )
    source: str = Field("", description="where this was published")
    fitted: bool = Field(True, description="false: the shares of the peak in devices.py were not fitted to this run")

    @field_validator("device")
    @classmethod
    def _known(cls, name):
        find_device(name)
        return name

    @property
    def accelerator(self) -> Device:
        return find_device(self.device)
