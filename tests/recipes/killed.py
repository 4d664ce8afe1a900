"""Runs recipes and kills them (SIGKILL) at a chosen moment. Two ways to start it:

    python killed.py                       imports once, then a child for each JSON line {recipe, words, kill} on stdin;
                                           answers a line each: the child's status, and the last of what it said
    KILL='{...}' accelerate launch killed.py RECIPE WORDS...      one rank of several dies

A kill is {"point", "call", "rank", "signal"}: at the so-manieth call of that point; SIGSTOP makes a process that never
answers. Processes that the launcher started anew are left in peace. Nothing in decero knows of this.
"""

import json
import os
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[2]


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def points():
    """Moments by name: the object that holds a function, its name, whether to die before, in the midst or after it."""
    import datasets
    import torch

    from decero.data.order import Rows
    from decero.training import checkpoint, loop, metrics_log

    return {
        "before a step": (loop, "backward", "before"),
        "after a gradient": (loop, "backward", "after"),
        "in the update": (torch.optim.AdamW, "step", "before"),
        "while reading data": (Rows, "__getitems__", "before"),
        "while tokenizing": (datasets.Dataset, "map", "before"),
        "before a file of a checkpoint": (checkpoint, "save_file", "before"),
        "in the midst of a file of a checkpoint": (checkpoint, "save_file", "midst"),
        "before the manifest": (checkpoint, "_fingerprint", "before"),
        "before flushing": (checkpoint, "_flush", "before"),
        "before the rename": (Path, "rename", "before"),
        "after the rename": (Path, "rename", "after"),
        "while pruning": (checkpoint.shutil, "rmtree", "before"),
        "after pruning": (checkpoint.shutil, "rmtree", "after"),
        "while writing the log": (metrics_log.MetricsLog, "write", "before"),
        "while resuming: the log": (metrics_log.MetricsLog, "__init__", "before"),
        "while resuming: checking": (checkpoint, "damage", "before"),
        "while resuming: weights": (checkpoint, "load_weights", "before"),
        "while resuming: optimizer": (checkpoint, "Stored", "before"),
        "while resuming: random state": (checkpoint, "restore_random_state", "before"),
        "while replacing a file": (Path, "replace", "before"),
        "after replacing a file": (Path, "replace", "after"),
        "while a text file is written": (Path, "write_text", "midst"),
    }


def arm(kill):
    """Let the process die there."""
    holder, name, moment = points()[kill["point"]]
    real, left, number = getattr(holder, name), [kill["call"]], kill.get("signal", signal.SIGKILL)

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and moment == "before":
            die(number)
        if left[0] == 0 and moment == "midst":  # half of it is on the disk
            result = real(*args, **kwargs)
            path = args[0] if holder is Path else Path(args[1])
            os.truncate(path, path.stat().st_size // 2)
            die(number)
        result = real(*args, **kwargs)
        if left[0] == 0:
            die(number)
        return result

    setattr(holder, name, counted)


def start(recipe, words):
    sys.argv = [f"recipes/{recipe}.py", *words]
    os.chdir(ROOT)
    runpy.run_path(sys.argv[0], run_name="__main__")


def serve():
    import transformers  # noqa: F401 (what recipes import, once for all children)
    from accelerate import Accelerator  # noqa: F401

    import decero.training.economy
    import decero.training.tasks  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        said = Path(order["said"])
        if (child := os.fork()) == 0:
            with said.open("w") as out, redirect_stdout(out), redirect_stderr(out):
                if order["kill"]:
                    arm(order["kill"])
                code = 0
                try:
                    start(order["recipe"], order["words"])
                except SystemExit as ended:
                    code = int(ended.code or 0)
                out.flush()
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said.read_text()[-2000:]}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        kill = json.loads(os.environ.get("KILL", "null"))
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if kill and first and int(os.environ.get("RANK", "0")) == kill["rank"]:
            arm(kill)
        start(sys.argv[1], sys.argv[2:])
