"""A slice of the attack, and the attack itself: it must notice what it looks for. `make faults` runs 2,000 cases."""

import time
from pathlib import Path

import pytest
from tests.faults import damaged_runs
from tests.faults.attack import KINDS, kind_of, run_case
from tests.faults.case import Case, Place, Step, judge

# Damaged runs need runs of every recipe first; test_kills.py damages one.
SLICE = [seed for seed in range(8) if kind_of(seed) is not damaged_runs]


@pytest.mark.long
def test_generated_input_is_read_or_refused_in_one_line(server, world, tmp_path):
    results = [run_case(seed, world, server, tmp_path) for seed in SLICE]
    failed = [line for result in results if result.verdict.failed for line in result.lines()]
    assert not failed, "\n".join(failed)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_a_seed_gives_the_same_case_again(kind, world, tmp_path):
    def drawn(folder):
        case = kind.draw(Place.of(7, tmp_path / folder, world))
        given = {
            p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*") if p.is_file() and p.name != "config.yaml"
        }
        return [str(step).replace(f"/{folder}/", "/") for step in case.steps], case.story, given

    assert drawn("a") == drawn("b")


# --- programs with faults, run in children of the server


@pytest.mark.parametrize(
    ("program", "words", "outcome"),
    [
        ("crash", [], "traceback"),
        ("hang", [], "hang"),
        ("end", ["3"], "exit"),
        ("end", ["0"], "done"),
        ("refuse", ["what is wrong with x"], "refused"),
        ("refuse", [], "not one line"),
        ("refuse", ["what is wrong with x", "what is wrong with y"], "not one line"),
        ("write", ["outside"], "outside"),
        ("write", ["../given/outside"], "outside"),
        ("write", ["../out/result.json", '{"loss": NaN}'], "nonsense"),
        ("write", ["../out/result.json", '{"loss": 1.5}'], "done"),
        ("print_nan", [], "nonsense"),
        ("fill_memory", [], "traceback"),
    ],
)
def test_the_attack_notices_a_fault(server, tmp_path, program, words, outcome):
    place = Place.of(1, tmp_path, None)
    step = Step(f"tests.faults.programs:{program}", words)

    def run(step):
        limit = 1 if program == "hang" else 60  # others may wait for a busy machine
        return server.run(step.program, step.words, limit=limit, place=place.process, cwd=place.here)

    verdict, _ = judge(Case([step]), place, run)
    assert verdict.outcome == outcome, verdict


def test_children_that_are_late_end_with_what_they_started(server, tmp_path):
    done = server.run("tests.faults.programs:start_another", [tmp_path / "number"], limit=2, place=tmp_path / "p")
    assert done.code == "hang"
    status = Path(f"/proc/{(tmp_path / 'number').read_text()}/status")
    for _ in range(1000):
        if not status.exists() or "\nState:\tZ" in status.read_text():
            return
        time.sleep(0.01)
    pytest.fail("it is still there")
