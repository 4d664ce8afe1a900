"""Killed runs resume with bit-identical results, also with damaged files, a full disk or a wrong clock.

A run that cannot resume says why in one line. A few cases run here; `make faults` runs them all: every point of a run
and of its end, every recipe, one process and two.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tests.faults.world import MEASURES, TRAINED
from tests.hub.conftest import Repo

from decero.training.checkpoint import newest_valid

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).with_name("killed.py")
KINDS = ["pretrain_mlm", "finetune_classification", "finetune_seq2seq", "streamed"]
TWO = ("--config_file", "configs/accelerate/cpu_2_processes.yaml", "--main_process_port", "0")
STREAM = ("data.streaming=true", "data.buffer_size=20")
SAVING = ("training.max_train_steps=9", "training.save_steps=2", "training.save_total_limit=2")
DROPOUT = ("model.overrides.hidden_dropout_prob=0.1", "model.overrides.attention_probs_dropout_prob=0.1")
# How often a run of nine steps passes each point, roughly. A kill at an unreached point does not count.
POINTS = {
    "before a step": 9, "after a gradient": 9, "in the update": 9, "while reading data": 40, "while tokenizing": 2,
    "before a file of a checkpoint": 15, "in the midst of a file of a checkpoint": 15, "before the manifest": 20,
    "before flushing": 35, "before the rename": 6, "after the rename": 6, "while pruning": 9, "after pruning": 9,
    "while writing the log": 12, "while replacing a file": 3, "after replacing a file": 3,
    "while a text file is written": 12, "while reading a stream": 12,
}  # fmt: skip
RESUMING = {
    "while resuming: the log": 1, "while resuming: checking": 2, "while resuming: weights": 1,
    "while resuming: optimizer": 2, "while resuming: random state": 1, "while a text file is written": 2,
    "before a step": 3, "while reading data": 3, "before the rename": 2,
}  # fmt: skip


def recipe_of(kind):
    return "pretrain_mlm" if kind == "streamed" else kind


def left_by(folder):
    """Return weights, optimizer and log of a run, without times."""
    last = max((folder / "checkpoints").glob("step-*"))
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("tokens_per_s", "data_wait")} for row in log]
    files = (folder / "model" / "model.safetensors", last / "optimizer.safetensors", last / "random-0.safetensors")
    return [path.read_bytes() for path in files], timeless


@pytest.fixture(scope="module")
def undisturbed(server, world, tmp_path_factory):
    """Run each kind once without kills; return its words and results."""
    made = {}

    def of(kind, ranks=1):
        if (kind, ranks) not in made:
            words = [world.config(recipe_of(kind)), *SAVING, *DROPOUT, *(STREAM if kind == "streamed" else ())]
            folder = tmp_path_factory.mktemp("undisturbed") / kind
            done = server.run(recipe_of(kind), [*words, f"output={folder}"], ranks=ranks)
            assert done.code == 0, done.text
            made[kind, ranks] = (words, left_by(folder))
        return made[kind, ranks]

    return of


def draw(dice, ranks=1):
    """Draw one kill of the run and up to two while resuming. Of two ranks, the second writes less."""
    first, rank = dice.choice(list(POINTS)), dice.randrange(ranks)
    kills = [{"point": first, "call": dice.randint(1, max(1, POINTS[first] // ranks)), "rank": rank}]
    for point in dice.choices(list(RESUMING), k=dice.randint(0, 2)):
        kills.append({"point": point, "call": dice.randint(1, RESUMING[point]), "rank": dice.randrange(ranks)})
    return kills


def kill_and_resume(server, kind, undisturbed, folder, kills, ranks=1):
    """Kill and resume a run, check that its result is that of an undisturbed run, and return the number of kills."""
    words, expected = undisturbed(kind, ranks)
    words, fell, begun = [*words, f"output={folder}"], 0, False
    for kill in kills:
        done = server.run(recipe_of(kind), [*words, *(["--resume"] if begun else [])], kill=kill, ranks=ranks)
        assert done.code in (0, -9), (kill, done)
        begun, fell = True, fell + (done.code == -9)
    done = server.run(recipe_of(kind), [*words, "--resume"], ranks=ranks)
    assert done.code == 0, (kills, done.text)
    files, log = left_by(folder)
    assert files == expected[0], kills
    assert log == expected[1], kills
    return fell


@pytest.mark.parametrize(
    ("kind", "first", "then", "ranks"),
    [
        ("pretrain_mlm", ("in the midst of a file of a checkpoint", 5, 0), ("while resuming: optimizer", 0), 1),
        pytest.param(
            "finetune_classification",
            ("before the rename", 2, 0),
            ("while resuming: the log", 0),
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "finetune_seq2seq", ("while pruning", 6, 0), ("while a text file is written", 0), 1, marks=pytest.mark.slow
        ),
        pytest.param(
            "pretrain_mlm", ("after a gradient", 7, 1), ("while resuming: weights", 0), 2, marks=pytest.mark.long
        ),
        pytest.param(
            "finetune_seq2seq",
            ("after a gradient", 7, 1),
            ("while resuming: weights", 0),
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(  # tests/data/test_stream.py kills one that reads only
            "streamed", ("while reading a stream", 5, 0), ("before a step", 0), 1, marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(server, undisturbed, kind, first, then, ranks, tmp_path):
    kills = [{"point": first[0], "call": first[1], "rank": first[2]}, {"point": then[0], "call": 1, "rank": then[1]}]
    assert kill_and_resume(server, kind, undisturbed, tmp_path / "run", kills, ranks) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_random_kills_of_one_process_change_nothing(server, undisturbed, tmp_path, number, record_property):
    """Run by `make faults`: 15 seeds for each kind of run, one to three kills each."""
    kills = draw(random.Random(number))
    fell = kill_and_resume(server, KINDS[number % 4], undisturbed, tmp_path / "run", kills)
    record_property("kills", fell)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(16))
def test_random_kills_of_one_of_two_processes_change_nothing(server, undisturbed, tmp_path, number, record_property):
    """Run by `make faults`: one of two processes dies, the other is stopped like by a launcher, both resume."""
    kills = draw(random.Random(1000 + number), ranks=2)
    fell = kill_and_resume(server, KINDS[number % 4], undisturbed, tmp_path / "run", kills, ranks=2)
    record_property("kills", fell)


# --- the end of a run: scores, model/, result.json, the push

SAVES = ("before the model is saved", "in the midst of saving the model", "between model and tokenizer")
SCORES = (
    "before an evaluation", "after an evaluation", "in the midst of a file of a checkpoint", "after the rename",
    "before scoring", "after scoring",
)  # fmt: skip
RECORDS = ("after the tokenizer", "before the record", "after the record")
PUSHES = ("before the push", "in the push", "after the push")
ENDS = dict.fromkeys(TRAINED, SCORES + SAVES + RECORDS + PUSHES)
ENDS |= {"train_tokenizer": SAVES[2:] + RECORDS + PUSHES, "compare": SCORES + SAVES + RECORDS}
ENDS |= dict.fromkeys(MEASURES, RECORDS[1:])
QUICK = {
    ("finetune_classification", 1, "in the push"), ("pretrain_mlm", 2, "in the midst of saving the model"),
}  # fmt: skip
ENDINGS = [
    pytest.param(recipe, ranks, point, marks=[] if (recipe, ranks, point) in QUICK else pytest.mark.slow)
    for recipe, points in ENDS.items()
    for ranks in ((1,) if recipe == "train_tokenizer" else (1, 2))
    for point in points
]
KEPT = ("model.safetensors", "tokenizer.json", "predictions.parquet", "outputs.parquet")


def ending_of(folder, pushed):
    """Return what a run leaves, without times and names, and what it has pushed."""
    files = {path.relative_to(folder): path.read_bytes() for name in KEPT for path in folder.rglob(name)}
    files = {path: content for path, content in files.items() if "checkpoints" not in path.parts}
    scores = {
        path.relative_to(folder): json.loads(path.read_text()).get("metric") for path in folder.rglob("result.json")
    }
    sent = {name: content for name, content in pushed.files.items() if name.count("/") == 0 and name != "README.md"}
    return files, scores, sent, sorted(pushed.files), len(pushed.commits)


@pytest.fixture(scope="module")
def ended(server, world, stand_in, tmp_path_factory):
    """Run a recipe to its end, with kills before; return what it leaves and how many kills fell."""
    hub, reach = stand_in
    made, nothing = {}, Repo("", True, {})

    def run(recipe, ranks, kills=()):
        number = len(made)
        name, folder = f"me/run-{number}", tmp_path_factory.mktemp("ended") / "run"
        words = [
            world.config(recipe),
            f"output={folder}",
            *([f"hub.repo_id={name}"] if PUSHES[0] in ENDS[recipe] else []),
        ]
        fell = 0
        for kill in (*kills, None):
            resume = ["--resume"] if folder.exists() else []
            done = server.run(recipe, [*words, *resume], kill=kill, ranks=ranks, hub=reach)
            assert done.code in ((0, -9) if kill else (0,)), done.text
            fell += done.code == -9
        made[number] = ending_of(folder, hub.repos.get(("model", name), nothing)), fell
        return made[number]

    return run


@pytest.fixture(scope="module")
def unkilled(ended):
    made = {}
    return lambda *how: made.setdefault(how, None) or made.update({how: ended(*how)[0]}) or made[how]


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "ranks", "point"), ENDINGS)
def test_a_run_killed_at_its_end_ends_as_if_unkilled(ended, unkilled, recipe, ranks, point, record_property):
    """The same weights, scores and files, pushed once, as well when the resumed run is killed there again."""
    rank = ranks - 1 if point in SCORES and "checkpoint" not in point and "rename" not in point else 0
    kill = {"point": point, "call": 2 if recipe == "compare" else 1, "rank": rank}
    result, fell = ended(recipe, ranks, [kill, kill | {"call": 1}])
    files, scores, sent, names, commits = unkilled(recipe, ranks)
    assert fell, "the point was not reached"
    assert result[0] == files
    assert result[1:] == (scores, sent, names, commits)
    record_property("kills", fell)


@pytest.fixture
def launched(world, tmp_path):
    """Start a run on two processes with the launcher; one may be killed."""

    def start(name, *more, kill=None, launcher=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "WORLD_"))}
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "KILL": json.dumps(kill)}
        words = [world.config("pretrain_mlm"), *SAVING, *DROPOUT, f"output={tmp_path / name}", *more]
        command = [sys.executable, "-m", "accelerate.commands.launch", *TWO, *launcher, str(KILLED)]
        command += ["pretrain_mlm", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)

    return start


@pytest.mark.slow
def test_a_launcher_that_restarts_resumes_by_itself(launched, undisturbed, tmp_path):
    kill = {"point": "before a step", "call": 7, "rank": 1}
    done = launched("run", kill=kill, launcher=["--max_restarts", "1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at step 6 of 9" in done.stdout
    assert left_by(tmp_path / "run") == undisturbed("pretrain_mlm", 2)[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_process_ends_the_run_within_the_timeout(launched, tmp_path, rank):
    kill = {"point": "before a step", "call": 7, "rank": rank, "signal": signal.SIGSTOP}
    began = time.monotonic()
    done = launched("run", "training.ddp_timeout=15", kill=kill)
    assert time.monotonic() - began < 150  # the launcher gives the silent one 30 s to leave
    assert done.returncode != 0
    assert f"error: process {1 - rank} of 2 lost the other processes" in done.stderr
    assert "start the same command again with --resume" in done.stderr
    assert newest_valid(tmp_path / "run" / "checkpoints").name == "step-00000006"
    assert launched("run", "training.ddp_timeout=15", "--resume").returncode == 0


# --- damage to the folder of a run that is not running

STOP = {"point": "before a step", "call": 8}  # steps 2, 4 and 6 are saved, the last two of them kept


@pytest.fixture
def stopped(server, undisturbed, tmp_path):
    """Kill a run at its eighth step; return its checkpoints, a way to resume it, and the expected result."""
    words, expected = undisturbed("pretrain_mlm")
    words = [*words, f"output={tmp_path}/run"]
    assert server.run("pretrain_mlm", words, kill=STOP).code == -9
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == ["step-00000004", "step-00000006"]

    def resume(kill=None):
        return server.run("pretrain_mlm", [*words, "--resume"], kill=kill)

    return kept, resume, expected


def shorten(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 5] ^= 4
    path.write_bytes(data)


HARMS = [  # tests/training/test_checkpoint.py finds each of them in the folder alone
    pytest.param(name, harm, marks=[] if (number, place) in ((0, 0), (3, 1)) else pytest.mark.slow)
    for number, name in enumerate(["model.safetensors", "optimizer.safetensors", "random-0.safetensors", "state.json"])
    for place, harm in enumerate([shorten, flip_a_bit, Path.unlink])
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_damage_to_the_newest_checkpoint_costs_only_its_steps(stopped, tmp_path, harm, name):
    kept, resume, expected = stopped
    harm(kept[1] / name)
    done = resume()
    assert done.code == 0, done.text
    assert f"step-00000006: skipped: {name} " in done.text
    assert "at step 4 of 9" in done.text
    assert left_by(tmp_path / "run") == expected


def test_damage_to_all_checkpoints_is_one_line(stopped):
    kept, resume, _ = stopped
    for path in kept:
        flip_a_bit(path / "model.safetensors")
    done = resume()
    assert done.code == 2
    assert "checkpoints: no checkpoint is intact; delete this folder to start the run again" in done.text
    assert "Traceback" not in done.text


def test_wrong_file_times_change_nothing(stopped, tmp_path):
    """The newest checkpoint is that of the highest step; file times do not matter."""
    kept, resume, expected = stopped
    for age, path in ((-(10**6), kept[0]), (10**8, kept[1])):  # the older one is from the future
        for file in (path, *path.iterdir()):
            os.utime(file, (time.time() - age,) * 2)
    done = resume()
    assert "at step 6 of 9" in done.text
    assert left_by(tmp_path / "run") == expected


def test_a_second_run_in_the_same_folder_is_refused(stopped, tmp_path):
    _, resume, _ = stopped
    with FileLock(tmp_path / "run" / ".lock"):
        done = resume()
    assert done.code == 2
    assert "run is being written by another run; wait for it, or give another output=FOLDER" in done.text
    assert resume().code == 0


@pytest.fixture
def small_disk(tmp_path):
    """Mount a separate file system, and remount it with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)

    if mount("size=240k").returncode:
        pytest.skip("only root may mount")
    yield place, lambda *options: mount("remount", *options)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 16, *range(40, 280, 40)])
def test_a_full_disk_is_one_line_and_space_resumes_the_run(server, undisturbed, small_disk, kilobytes):
    words, expected = undisturbed("pretrain_mlm")
    place, remount = small_disk
    remount(f"size={kilobytes}k")
    words = [*words, f"output={place}/run"]
    done = server.run("pretrain_mlm", words)
    assert done.code == 2, done.text
    assert "No space left on device" in done.text
    assert "Traceback" not in done.text
    remount("size=50m")
    done = server.run("pretrain_mlm", [*words, "--resume"])
    assert done.code == 0, done.text
    assert left_by(place / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", range(8, 160, 8))
@pytest.mark.parametrize("save_steps", ["9", "null"])
def test_a_full_disk_at_the_final_save_loses_nothing(server, undisturbed, small_disk, save_steps, kilobytes):
    words, expected = undisturbed("pretrain_mlm")
    place, remount = small_disk
    remount(f"size={kilobytes}k")
    words = [*words, f"output={place}/run", f"training.save_steps={save_steps}", "training.save_total_limit=1"]
    done = server.run("pretrain_mlm", words)
    assert done.code == 2 or kilobytes > 40, done.text
    if done.code:
        assert done.code == 2, done.text
        assert "No space left on device" in done.text
        assert "Traceback" not in done.text
        remount("size=50m")
        done = server.run("pretrain_mlm", [*words, "--resume"])
        assert done.code == 0, done.text
    assert (place / "run" / "model" / "model.safetensors").read_bytes() == expected[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 16, 24, 32])
def test_a_full_disk_under_an_import_is_one_line(server, world, small_disk, kilobytes):
    place, remount = small_disk
    remount(f"size={kilobytes}k")
    done = server.run("decero", ["import", world.models() / "bert_mlm", place / "model"])
    assert done.code == 2, done.text
    assert "No space left on device" in done.text
    assert "Traceback" not in done.text
    assert not (place / "model").exists()


@pytest.mark.slow
def test_a_read_only_folder_is_one_line(server, undisturbed, small_disk):
    words, expected = undisturbed("pretrain_mlm")
    place, remount = small_disk
    remount("size=50m")
    words = [*words, f"output={place}/run"]
    assert server.run("pretrain_mlm", words, kill=STOP).code == -9
    remount("ro")
    done = server.run("pretrain_mlm", [*words, "--resume"])
    assert done.code == 2, done.text
    assert "cannot be written: Read-only file system" in done.text
    assert "Traceback" not in done.text
    remount("rw", "size=50m")
    assert server.run("pretrain_mlm", [*words, "--resume"]).code == 0
    assert left_by(place / "run") == expected
