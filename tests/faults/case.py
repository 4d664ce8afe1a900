"""What a case of the attack is, and the verdict on it.

A case fails when a step prints a traceback, ends with a code that it should not have, dies of a signal, hangs, refuses
without exactly one line, changes a file outside of `out`, or ends well with nonsense in its files.
"""

import json
import random
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from tests.faults.server import HANG, Done
from tests.faults.world import World

LIMIT = 60  # seconds until a step counts as hanging
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Step:
    """A program and its words. codes: the exit codes that are right, besides 2 with one line."""

    program: str
    words: list
    stdin: bytes = b""
    codes: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        name = "decero" if self.program == "decero" else f"python recipes/{self.program}.py"
        return f"{name} {' '.join(map(repr, map(str, self.words)))}"[:3000]


@dataclass
class Case:
    """story: what was done to the input. wrong: tells what is wrong with the steps that were done, or None."""

    steps: list[Step] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    wrong: Callable[[list[Done]], str | None] = lambda done: None


@dataclass
class Place:
    """The folders of a case: `given` to read, `out` to write to, `here` to work in; what it draws from; the world."""

    folder: Path
    dice: random.Random
    world: World | None

    def __post_init__(self):
        for each in (self.given, self.here):
            each.mkdir(parents=True)

    @classmethod
    def of(cls, seed: int, folder: Path, world: World | None) -> "Place":
        """The place of the case of a seed: what it draws depends on the seed alone."""
        return cls(folder / str(seed), random.Random(seed), world)

    given = property(lambda self: self.folder / "given")
    out = property(lambda self: self.folder / "out")
    here = property(lambda self: self.folder / "here")
    process = property(lambda self: self.folder / "process")

    def snapshot(self) -> dict[str, tuple]:
        """Everything that a case must leave alone: path -> kind, size, time of change."""
        left = {}
        for root in (self.given, self.here, self.process / "home", *self.folder.glob("*")):
            if root in (self.out, self.process):
                continue
            for path in (root, *root.rglob("*")):
                if path.is_symlink() or path.exists():
                    found = path.lstat()
                    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
                    left[str(path)] = (stat.S_IFMT(found.st_mode), size, 0 if size == 0 else found.st_mtime_ns)
        return left


@dataclass
class Verdict:
    """outcome: done, refused, or the kind of failure. cause: what failures of one origin share."""

    outcome: str
    cause: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome not in ("done", "refused")


def judge(case: Case, place: Place, run: Callable[[Step], Done]) -> tuple[Verdict, list[Done]]:
    """Run the steps until one fails."""
    (place.process / "home").mkdir(parents=True)
    before, began, ended, verdict = place.snapshot(), time.time_ns(), [], Verdict("done")
    for step in case.steps:
        done = run(step)
        ended.append(done)
        verdict = of_step(step, done)
        if not verdict.failed and done.code == 0 and (what := nonsense(place.out, began, done)):
            verdict = Verdict("nonsense", what)
        if verdict.failed:
            break
    after = place.snapshot()
    if changed := sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)):
        verdict = Verdict("outside", f"{changed[0].removeprefix(str(place.folder))} of {case.steps[0].program}")
    if not verdict.failed and (what := case.wrong(ended)):
        verdict = Verdict("nonsense", what)
    return verdict, ended


def of_step(step: Step, done: Done) -> Verdict:
    if done.code == HANG:
        return Verdict("hang", innermost(done.err, r'File "(\S+)", line \d+ in (\w+)', first=True))
    if TRACEBACK in done.text or "Exception ignored" in done.text:
        raised = re.findall(
            r"^([\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Failed)\w*)\b:?(.{0,40})", done.text, re.M
        )
        kind, words = raised[-1] if raised else ("?", "")
        where = innermost(done.text, r'File "(\S+)", line \d+, in (\S+)')
        words = re.sub(r"\d+", "N", re.sub(r"'[^']*'?|\S*/\S*|:.*", "...", words))
        return Verdict("traceback", f"{kind}:{words} in {where}")
    if isinstance(done.code, int) and done.code < 0:
        return Verdict("signal", f"{-done.code} {step.program}")
    if done.code == 2:
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        if len(lines) != 1 or not 15 < len(lines[0]) < 1200:
            return Verdict("not one line", f"{len(lines)} lines: {done.err[-100:]!r}")
        return Verdict("refused")
    return Verdict("done") if done.code in step.codes else Verdict("exit", f"{done.code} {step.program}")


def innermost(text: str, pattern: str, first: bool = False) -> str:
    """The place in decero that was active: file and function."""
    frames = [
        f"{file.split('/decero/')[1]}:{name}" for file, name in re.findall(pattern, text) if "src/decero/" in file
    ]
    return frames[0 if first else -1] if frames else "a library"


def strict(path: Path):
    """Read JSON as others do, without NaN and infinity."""

    def refuse(word):
        raise ValueError(f"{word} in {path.name}")

    lines = (
        path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    )
    return [json.loads(line, parse_constant=refuse) for line in lines]


def nonsense(out: Path, began: int, done: Done) -> str | None:
    """What no program that ends well may print, or leave in a file that it writes."""
    if re.search(r"(^|[\s:])nan\b", done.out):
        return "nan on standard output"
    new = [path for path in out.rglob("*") if path.is_file() and path.stat().st_mtime_ns >= began]
    for path in sorted(new):
        try:
            if path.suffix in (".json", ".jsonl"):
                strict(path)
            elif path.name.startswith("model") and path.suffix == ".safetensors":
                with safe_open(path, framework="np") as weights:
                    tensors = [weights.get_tensor(name).astype(np.float32) for name in weights.offset_keys()]
                    if not all(np.isfinite(tensor).all() for tensor in tensors):
                        return f"weights that are not finite in {path.parent.name}/{path.name}"
        except (ValueError, OSError, SafetensorError, TypeError) as error:
            return f"{str(error)[:60]} ({path.name})"
    return None
