"""An arm in a process of its own, as a user would run it: what one does to allocator and threads, no other one meets.

The parent holds an `ArmProcess`; the child is `python -m decero.benchmark.process`. What to build is a line of JSON on
its standard input, then comes a word a line; a line of JSON on its standard output answers each.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from decero.benchmark.arms import build_arms
from decero.benchmark.batches import make_texts
from decero.benchmark.decoding import build_decoders, sources_of
from decero.benchmark.measure import timed
from decero.benchmark.memory import peak_of_step
from decero.benchmark.works import ArmName, Work, build_pair
from decero.errors import UserError, run
from decero.training.run import keep_freed_memory, multiply_in_tf32


class ArmProcess:
    """Called, the arm trains or decodes one unit; returned are the seconds of that, as its own process counts them."""

    def __init__(self, name: str, work: Work, arm: ArmName, device: torch.device, seed: int):
        self.name = f"works.{name}: {arm}"
        self.child = subprocess.Popen(
            [sys.executable, "-m", "decero.benchmark.process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            process_group=0,  # Ctrl-C is for the parent, who ends this one
            env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # the profiler talks
        )  # fmt: skip
        asked = {"name": name, "work": work.model_dump(), "arm": arm, "device": str(device), "seed": seed}
        self._say(json.dumps(asked | {"threads": torch.get_num_threads()}))

    def __call__(self) -> float:
        return self._ask("run")["seconds"]

    def facts(self) -> dict[str, Any]:
        """Waits until the arm is built. `parameters`, `says`, and `loss` of the first batch or what was `written`."""
        return self._answer()

    def memory(self) -> dict[str, int]:
        """`held_bytes` and `step_bytes` as `peak_of_step` counts them."""
        return self._ask("memory")

    def _ask(self, word: str) -> dict[str, Any]:
        self._say(word)
        return self._answer()

    def _say(self, line: str) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(f"{line}\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        return json.loads(line) if line.endswith("\n") else self._ended()

    def _ended(self) -> Any:
        code = self.child.wait()
        killed = "probably for want of memory, for all arms are held at once; lower its batch_size (another output=)"
        raise UserError(
            f"{self.name}: its process ended with {code}, {killed if code == -signal.SIGKILL else 'see above'}"
        )


def memory_of(arms: Mapping[str, ArmProcess]) -> dict[str, dict[str, int]]:
    """Of every arm that lives to say: what was timed is not lost for it."""
    memory = {}
    for arm, each in arms.items():
        try:
            memory[arm] = each.memory()
        except UserError as error:
            print(f"memory: {error}", file=sys.stderr)
    return memory


@contextmanager
def processes(
    name: str, work: Work, device: torch.device, seed: int
) -> Iterator[tuple[dict[str, ArmProcess], dict[str, Any]]]:
    """The arms of a work, built and waiting, and the facts of each; they end with the block.

    Raises UserError when a process ends before it is told to.
    """
    arms: dict[str, ArmProcess] = {}
    try:
        for arm in work.arms():
            arms[arm] = ArmProcess(name, work, arm, device, seed)
        yield arms, {arm: each.facts() for arm, each in arms.items()}
    finally:
        for each in arms.values():
            each.child.kill()
            each.child.communicate()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = json.loads(sys.stdin.readline())
    name, arm, device, seed = asked["name"], asked["arm"], torch.device(asked["device"]), asked["seed"]
    work = Work.model_validate(asked["work"])
    torch.set_num_threads(asked["threads"])
    allocator = "the C library's, as it is"
    if device.type != "cpu":
        multiply_in_tf32()
    elif work.tricks and work.kind != "decode" and not arm.startswith("stock"):
        keep_freed_memory()  # as a run of ours does
        allocator = "freed memory is kept"

    def answer(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=answers, flush=True)

    pair = build_pair(name, work, seed)
    texts = make_texts(name, work, pair[0].config, seed)
    unit: Any
    if work.kind == "decode":
        unit = build_decoders(work, pair, sources_of(texts), device, seed)[arm]
        unit()
        facts = {"written": unit.written}
    else:
        unit = build_arms(work, pair, texts, device, seed, [arm])[arm]
        facts = {"loss": unit.plain_loss()}
    del pair
    gc.collect()
    gc.freeze()  # what is there now stays; collecting what a unit leaves is then quick
    gc.disable()
    answer(facts | {"parameters": unit.model.num_parameters(), "says": [*unit.says, f"allocator: {allocator}"]})
    for line in sys.stdin:
        said = {"seconds": timed(unit, device)} if line.strip() == "run" else peak_of_step(unit)
        gc.collect()  # while nobody else is timed
        answer(said)


if __name__ == "__main__":
    run(main)
