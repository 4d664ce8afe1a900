"""Read the command line of a recipe: its options, and the settings given as key.sub=value."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from decero.config.devices import Device
from decero.config.yaml_files import yaml_value
from decero.errors import UserError, did_you_mean

OPTIONS = {  # name -> (placeholder of its value in the help, what it does)
    "--dry-run": ("", "forecast memory and time, write nothing"),
    "--resume": ("", "continue from the last checkpoint"),
    "--eval-only": ("", "score model.name_or_path without training it"),
    "--budget": ("TIME", "choose model shape, batch, steps and schedule for this time: 90s, 30m, 2h, 1d"),
    "--device": ("NAME", "with --dry-run: forecast for this accelerator, not for this machine"),
}


LONGEST = 1000 * 86400  # seconds of a budget


@dataclass
class Call:
    """Keep how a run was started. This is not part of its settings, so all calls compare equal.

    given: keys set on the command line. notes: comment lines written above the settings in config.yaml.
    began: time.perf_counter() at the start, in seconds.
    """

    dry_run: bool = False
    resume: bool = False
    eval_only: bool = False
    budget: str | None = None
    device: Device | None = None
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call)


def take_options(known: Sequence[str], argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split words into settings and options. A value follows its option after a space or `=`.

    Raises UserError for an unknown option, a missing value, or a value where the option takes none.
    """
    words, flags, remaining = [], {}, iter(argv)
    for word in remaining:
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in known:
            near = did_you_mean(name, (*known, "--help")) or "; settings are given as key.sub=value"
            raise UserError(
                f"unknown option {name}{near if name not in OPTIONS else ' for this recipe'}  (all: --help)"
            )
        placeholder, _ = OPTIONS[name]
        value = value or (next(remaining, "") if placeholder else "")
        if bool(value) != bool(placeholder):
            raise UserError(f"{name} {f'needs a {placeholder}' if placeholder else 'takes no value'}  (all: --help)")
        flags[name] = value
    return words, flags


def keys_of(word: str) -> Iterator[str]:
    """Yield the keys that a word of the command line sets: several if its value is a mapping."""
    key, _, text = word.partition("=")
    stack = [(key, yaml_value(word, text))]
    while stack:
        key, value = stack.pop()
        yield key
        stack += [(f"{key}.{name}", item) for name, item in value.items()] if isinstance(value, dict) else []


def check_call(call: Call) -> None:
    """Raise UserError if options contradict each other or the given settings."""
    if call.device and not call.dry_run:
        raise UserError("--device needs --dry-run: a real run always uses this machine")
    if call.eval_only and (call.dry_run or call.budget):
        raise UserError(f"--eval-only trains nothing, so {'--dry-run' if call.dry_run else '--budget'} means nothing")
    if call.budget is None:
        return
    seconds_of(call.budget)
    if call.device:
        raise UserError("--budget measures this machine and --device names another one; remove --device")
    for name in ("training.max_train_steps", "training.num_train_epochs"):
        if name in call.given:
            raise UserError(f"--budget and {name} both set the length of training; remove one of them")


def seconds_of(text: str) -> float:
    """Convert 90s, 30m, 1.5h or 1d to seconds. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise UserError(f"--budget: cannot read {text} as a time; write a number and s, m, h or d, such as 30m")
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if seconds > LONGEST:
        raise UserError(f"--budget: {text} is too long; give at most {LONGEST // 86400} days")
    return seconds
