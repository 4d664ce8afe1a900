"""Run cases on two servers, count what happened, and say how to repeat what failed."""

import collections
import contextlib
import json
import queue
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults import command_lines, corpora, damaged_runs, model_folders
from tests.faults.case import LIMIT, Case, Place, Verdict, judge
from tests.faults.server import Done, Server
from tests.faults.world import World

KINDS = (command_lines, corpora, model_folders, damaged_runs)


@dataclass
class Result:
    seed: int
    case: Case
    verdict: Verdict
    done: list[Done]

    @property
    def kind(self) -> str:
        return kind_of(self.seed).__name__.rpartition(".")[2]

    def lines(self) -> list[str]:
        """What failed, and the command that repeats it."""
        return [
            f"case {self.seed} ({self.kind}): {self.verdict.outcome}: {self.verdict.cause}",
            f"    input: {'; '.join(self.case.story)}",
            f"    step: {self.case.steps[len(self.done) - 1]}"[:600],
            f"    repeat: python -m tests.faults {self.seed}",
        ]

    def record(self) -> dict:
        steps = [str(step) for step in self.case.steps]
        out = [{"code": each.code, "seconds": each.seconds, "end": each.text[-1500:]} for each in self.done]
        facts = {"seed": self.seed, "kind": self.kind, "story": self.case.story, "steps": steps, "done": out}
        return facts | {"outcome": self.verdict.outcome, "cause": self.verdict.cause}


def kind_of(seed: int):
    return KINDS[seed % len(KINDS)]


def run_case(seed: int, world: World, server: Server, folder: Path, keep: bool = False) -> Result:
    """Run the case of a seed in a folder of its own. Its input depends on the seed alone."""
    place = Place.of(seed, folder, world)
    case = kind_of(seed).draw(place)

    def run(step):
        return server.run(step.program, step.words, limit=LIMIT, place=place.process, cwd=place.here, stdin=step.stdin)

    verdict, done = judge(case, place, run)
    if not keep:
        shutil.rmtree(place.folder, ignore_errors=True)
    return Result(seed, case, verdict, done)


@contextlib.contextmanager
def servers(folder: Path, number: int):
    """Start servers, each on its core."""
    made = [Server(folder / f"server-{core}", core) for core in range(number)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def attack(seeds, folder: Path, workers: int = 2, keep: bool = False, say=print) -> list[Result]:
    """Run the cases of the seeds; say what fails as it happens."""
    waiting, results, broken = queue.SimpleQueue(), [], []
    for seed in seeds:
        waiting.put(seed)
    with servers(folder, workers) as made:
        world = World(folder / "world", made[0])

        def work(server):
            with contextlib.suppress(queue.Empty):
                while not broken:
                    seed = waiting.get_nowait()
                    try:
                        result = run_case(seed, world, server, folder / "cases", keep)
                    except Exception as error:
                        broken.append(seed)
                        raise RuntimeError(f"case {seed}: the attack itself has a fault") from error
                    results.append(result)
                    if result.verdict.failed:
                        say("\n".join(result.lines()))

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, made))
    return sorted(results, key=lambda result: result.seed)


def table(results: list[Result]) -> str:
    """Count outcomes by kind."""
    kinds = sorted({result.kind for result in results})
    outcomes = sorted(
        {result.verdict.outcome for result in results}, key=lambda name: (name != "done", name != "refused", name)
    )
    count = collections.Counter((result.kind, result.verdict.outcome) for result in results)
    rows = [["kind", "cases", *outcomes]]
    rows += [
        [kind, sum(count[kind, each] for each in outcomes), *(count[kind, each] for each in outcomes)] for kind in kinds
    ]
    rows += [["all", len(results), *(sum(count[kind, each] for kind in kinds) for each in outcomes)]]
    return "\n".join("  ".join(f"{cell!s:>14}" for cell in row) for row in rows)


def report(results: list[Result], path: Path | None, seconds: float) -> None:
    """Print the counts, and the causes of failures with a seed each; write all that failed as JSON."""
    failed = [result for result in results if result.verdict.failed]
    causes = collections.defaultdict(list)
    for result in failed:
        causes[f"{result.verdict.outcome}: {result.verdict.cause}"].append(result.seed)
    print(f"\n{table(results)}\n")
    for cause, seeds in sorted(causes.items(), key=lambda each: -len(each[1])):
        print(f"{len(seeds):>4} x {cause}    (seeds {', '.join(map(str, seeds[:6]))})")
    print(f"{len(results)} cases, {len(failed)} failed, {seconds:.0f} s; repeat one: python -m tests.faults SEED")
    if path:
        path.parent.mkdir(exist_ok=True)
        counts = collections.Counter(f"{result.kind}: {result.verdict.outcome}" for result in results)
        record = {"cases": len(results), "failed": len(failed), "seconds": round(seconds, 1), "counts": dict(counts)}
        record |= {
            "causes": dict(causes),
            "failures": [each.record() for each in failed],
        }
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
