"""Killed runs resume with bit-identical results, also with damaged files, a full disk or a wrong clock.

A run that cannot resume says why in one line. A few cases run here; `make faults` runs them all: every point, three
kinds of run, one process and two.
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

from decero.training.checkpoint import newest_valid

KILLED = Path(__file__).with_name("killed.py")
RUNS = {
    "mlm": "pretrain_mlm", "classify": "finetune_classification", "translate": "finetune_seq2seq",
    "streamed": "pretrain_mlm",
}  # fmt: skip
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


class Server:
    """Start runs as children of a process that has already imported everything."""

    def __init__(self, folder):
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(KILLED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, recipe, words, kill=None, ranks=1):
        order = {"recipe": recipe, "words": list(map(str, words)), "ranks": ranks, "kill": kill}
        order["output"] = str(self.folder / "output.txt")
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.kill()
    made.process.wait()


def left_by(folder):
    """Return weights, optimizer and log of a run, without times."""
    last = max((folder / "checkpoints").glob("step-*"))
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("tokens_per_s", "data_wait")} for row in log]
    files = (folder / "model" / "model.safetensors", last / "optimizer.safetensors", last / "random-0.safetensors")
    return [path.read_bytes() for path in files], timeless


@pytest.fixture(scope="module")
def undisturbed(server, request, tmp_path_factory):
    """Run each kind once without kills; return its words and results."""
    made = {}

    def of(kind, ranks=1):
        if (kind, ranks) not in made:
            words = [request.getfixturevalue("mlm" if kind == "streamed" else kind), *SAVING, *DROPOUT]
            words += STREAM if kind == "streamed" else ()
            folder = tmp_path_factory.mktemp("undisturbed") / kind
            done = server.run(RUNS[kind], [*words, f"output={folder}"], ranks=ranks)
            assert done["code"] == 0, done["output"]
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
        done = server.run(RUNS[kind], [*words, *(["--resume"] if begun else [])], kill, ranks)
        assert done["code"] in (0, -9), (kill, done)
        begun, fell = True, fell + (done["code"] == -9)
    done = server.run(RUNS[kind], [*words, "--resume"], ranks=ranks)
    assert done["code"] == 0, (kills, done["output"])
    files, log = left_by(folder)
    assert files == expected[0], kills
    assert log == expected[1], kills
    return fell


@pytest.mark.parametrize(
    ("kind", "first", "then", "ranks"),
    [
        ("mlm", ("in the midst of a file of a checkpoint", 5, 0), ("while resuming: optimizer", 0), 1),
        pytest.param(
            "classify", ("before the rename", 2, 0), ("while resuming: the log", 0), 1, marks=pytest.mark.slow
        ),
        pytest.param(
            "translate", ("while pruning", 6, 0), ("while a text file is written", 0), 1, marks=pytest.mark.slow
        ),
        ("translate", ("after a gradient", 7, 1), ("while resuming: weights", 0), 2),
        ("streamed", ("while reading a stream", 5, 0), ("before a step", 0), 1),
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
    fell = kill_and_resume(server, list(RUNS)[number % 4], undisturbed, tmp_path / "run", kills)
    record_property("kills", fell)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(16))
def test_random_kills_of_one_of_two_processes_change_nothing(server, undisturbed, tmp_path, number, record_property):
    """Run by `make faults`: one of two processes dies, the other is stopped like by a launcher, both resume."""
    kills = draw(random.Random(1000 + number), ranks=2)
    fell = kill_and_resume(server, list(RUNS)[number % 4], undisturbed, tmp_path / "run", kills, ranks=2)
    record_property("kills", fell)


@pytest.fixture
def launched(mlm, two_processes, tmp_path):
    """Start a run on two processes with the launcher; one may be killed."""

    def start(name, *more, kill=None, launcher=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "WORLD_"))}
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "KILL": json.dumps(kill)}
        words = [mlm, *SAVING, *DROPOUT, f"output={tmp_path / name}", *more]
        command = [sys.executable, "-m", "accelerate.commands.launch", *two_processes, *launcher, str(KILLED)]
        command += ["pretrain_mlm", *map(str, words)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)

    return start


@pytest.mark.slow
def test_a_launcher_that_restarts_resumes_by_itself(launched, undisturbed, tmp_path):
    kill = {"point": "before a step", "call": 7, "rank": 1}
    done = launched("run", kill=kill, launcher=["--max_restarts", "1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at step 6 of 9" in done.stdout
    assert left_by(tmp_path / "run") == undisturbed("mlm", 2)[1]


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
    words, expected = undisturbed("mlm")
    words = [*words, f"output={tmp_path}/run"]
    assert server.run("pretrain_mlm", words, STOP)["code"] == -9
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == ["step-00000004", "step-00000006"]

    def resume(kill=None):
        return server.run("pretrain_mlm", [*words, "--resume"], kill)

    return kept, resume, expected


def shorten(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 5] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [shorten, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random-0.safetensors", "state.json"])
def test_damage_to_the_newest_checkpoint_costs_only_its_steps(stopped, tmp_path, harm, name):
    kept, resume, expected = stopped
    harm(kept[1] / name)
    done = resume()
    assert done["code"] == 0, done["output"]
    assert f"step-00000006: skipped: {name} " in done["output"]
    assert "at step 4 of 9" in done["output"]
    assert left_by(tmp_path / "run") == expected


def test_damage_to_all_checkpoints_is_one_line(stopped):
    kept, resume, _ = stopped
    for path in kept:
        flip_a_bit(path / "model.safetensors")
    done = resume()
    assert done["code"] == 2
    assert "checkpoints: no checkpoint is intact; delete this folder to start the run again" in done["output"]
    assert "Traceback" not in done["output"]


def test_wrong_file_times_change_nothing(stopped, tmp_path):
    """The newest checkpoint is that of the highest step; file times do not matter."""
    kept, resume, expected = stopped
    for age, path in ((-(10**6), kept[0]), (10**8, kept[1])):  # the older one is from the future
        for file in (path, *path.iterdir()):
            os.utime(file, (time.time() - age,) * 2)
    done = resume()
    assert "at step 6 of 9" in done["output"]
    assert left_by(tmp_path / "run") == expected


def test_a_second_run_in_the_same_folder_is_refused(stopped, tmp_path):
    _, resume, _ = stopped
    with FileLock(tmp_path / "run" / ".lock"):
        done = resume()
    assert done["code"] == 2
    assert "run is being written by another run; wait for it, or give another output=FOLDER" in done["output"]
    assert resume()["code"] == 0


@pytest.fixture
def small_disk(tmp_path):
    """Mount a separate file system, and remount it with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)

    if mount("size=400k").returncode:
        pytest.skip("only root may mount")
    yield place, lambda *options: mount("remount", *options)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 16, *range(40, 440, 40)])
def test_a_full_disk_is_one_line_and_space_resumes_the_run(server, undisturbed, small_disk, kilobytes):
    words, expected = undisturbed("mlm")
    place, remount = small_disk
    remount(f"size={kilobytes}k")
    words = [*words, f"output={place}/run"]
    done = server.run("pretrain_mlm", words)
    assert done["code"] == 2, done["output"]
    assert "No space left on device" in done["output"]
    assert "Traceback" not in done["output"]
    remount("size=50m")
    done = server.run("pretrain_mlm", [*words, "--resume"])
    assert done["code"] == 0, done["output"]
    assert left_by(place / "run") == expected


@pytest.mark.slow
def test_a_read_only_folder_is_one_line(server, undisturbed, small_disk):
    words, expected = undisturbed("mlm")
    place, remount = small_disk
    remount("size=50m")
    words = [*words, f"output={place}/run"]
    assert server.run("pretrain_mlm", words, STOP)["code"] == -9
    remount("ro")
    done = server.run("pretrain_mlm", [*words, "--resume"])
    assert done["code"] == 2, done["output"]
    assert "cannot be written: Read-only file system" in done["output"]
    assert "Traceback" not in done["output"]
    remount("rw", "size=50m")
    assert server.run("pretrain_mlm", [*words, "--resume"])["code"] == 0
    assert left_by(place / "run") == expected
