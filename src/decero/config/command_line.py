"""How a run is called: options of the command line, and the settings that were given beside them."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from decero.config.devices import Device
from decero.config.yaml_files import yaml_value
from decero.errors import UserError, did_you_mean

OPTIONS = {  # name -> what stands for its value, what it does
    "--dry-run": ("", "forecast the run and write nothing"),
    "--resume": ("", "go on from the last checkpoint"),
    "--budget": ("TIME", "choose shape, batch, steps and schedule that fit in it: 90s, 30m, 2h, 1d"),
    "--device": ("NAME", "with --dry-run: forecast for this accelerator instead of this machine"),
}


@dataclass
class Call:
    """How a run was started, which is no part of what it is: equal settings are equal however they were called.

    given: keys of the command line. notes: lines that go before the settings where they are written down.
    """

    dry_run: bool = False
    resume: bool = False
    budget: str | None = None
    device: Device | None = None
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call)


def take_options(known: Sequence[str], argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words without the options, and the options with their values, which may stand behind a space or an =."""
    words, flags, rest = [], {}, iter(argv)
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in known:
            near = did_you_mean(name, (*known, "--help")) or "; settings are given as key.sub=value"
            raise UserError(f"{name} is no option{near if name not in OPTIONS else ' of this recipe'}  (all: --help)")
        stands_for, _ = OPTIONS[name]
        value = value or (next(rest, "") if stands_for else "")
        if bool(value) != bool(stands_for):
            raise UserError(f"{name} {f'needs a {stands_for}' if stands_for else 'takes no value'}  (all: --help)")
        flags[name] = value
    return words, flags


def keys_of(word: str) -> Iterator[str]:
    """The settings that a word of the command line gives: several when its value is a mapping."""
    key, _, text = word.partition("=")
    below = [(key, yaml_value(word, text))]
    while below:
        key, value = below.pop()
        yield key
        below += [(f"{key}.{name}", item) for name, item in value.items()] if isinstance(value, dict) else []


def check_call(call: Call) -> None:
    """Refuse options that contradict each other or the settings beside them."""
    if call.device and not call.dry_run:
        raise UserError("--device: a run takes the machine it is on; add --dry-run to forecast for another")
    if call.budget is None:
        return
    seconds_of(call.budget)
    if call.device:
        raise UserError("--budget is measured where it is spent; leave --device out")
    for name in ("training.max_train_steps", "training.num_train_epochs"):
        if name in call.given:
            raise UserError(f"--budget decides how long to train, and so does {name}; leave one of the two out")


def seconds_of(text: str) -> float:
    """90s, 30m, 1.5h or 1d as seconds. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise UserError(f"--budget: {text} is no time; write a number and s, m, h or d, as in 30m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
