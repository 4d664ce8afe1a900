"""Run recipes and kill them (SIGKILL) at a chosen point. Two ways to start it:

    python killed.py                       imports once, then runs each JSON line {recipe, words, ranks, kill} of stdin;
                                           answers one line each: exit code (-9 if a rank was killed, else the first
                                           other than 0) and the end of the output
    KILL='{...}' accelerate launch killed.py RECIPE WORDS...      kills one rank of several

A kill is {"point", "call", "rank", "signal"}: it happens at that call of that point. SIGSTOP makes a process hang.
Processes that the launcher restarted are not killed again. decero itself has no code for this.
"""

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[2]


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def points():
    """Return the points by name: (object, function name, whether to die before, in the middle or after)."""
    import datasets
    import torch

    from decero.data import stream
    from decero.data.order import Rows
    from decero.training import checkpoint, loop, metrics_log

    return {
        "before a step": (loop, "backward", "before"),
        "after a gradient": (loop, "backward", "after"),
        "in the update": (torch.optim.AdamW, "step", "before"),
        "while reading data": (Rows, "__getitems__", "before"),
        "while reading a stream": (stream._Open, "read", "before"),
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
        "while resuming: optimizer": (checkpoint, "ShardedTensors", "before"),
        "while resuming: random state": (checkpoint, "restore_random_state", "before"),
        "while replacing a file": (Path, "replace", "before"),
        "after replacing a file": (Path, "replace", "after"),
        "while a text file is written": (Path, "write_text", "midst"),
    }


def arm(kill):
    """Make the process die at the point of `kill`."""
    holder, name, moment = points()[kill["point"]]
    real, left, number = getattr(holder, name), [kill["call"]], kill.get("signal", signal.SIGKILL)

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and moment == "before":
            die(number)
        if left[0] == 0 and moment == "midst":  # half of the file is on disk
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


def child(order, rank, port):
    """Run one rank in its own process; return the process id."""
    if number := os.fork():
        return number
    if order["ranks"] > 1:
        ranks = {"RANK": rank, "WORLD_SIZE": order["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": order["ranks"]}
        os.environ.update({name: str(value) for name, value in ranks.items()})
    with Path(f"{order['output']}-{rank}").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        if order["kill"] and order["kill"].get("rank", 0) == rank:
            arm(order["kill"])
        code = 0
        try:
            start(order["recipe"], order["words"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
        out.flush()
        os._exit(code)


def serve():
    import transformers  # noqa: F401 (what recipes import, once for all children)
    from accelerate import Accelerator  # noqa: F401

    import decero.execution.optimize
    import decero.tasks.text_to_text  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alive, bad = {child(order, rank, port) for rank in range(order["ranks"])}, []
        while alive:
            number, status = os.wait()
            alive.remove(number)
            if code := os.waitstatus_to_exitcode(status):
                bad.append(code)
                for other in alive:  # what a launcher does with the others
                    os.kill(other, signal.SIGTERM)
        output = "".join(Path(f"{order['output']}-{rank}").read_text()[-2000:] for rank in range(order["ranks"]))
        print(json.dumps({"code": -9 if -9 in bad else [*bad, 0][0], "output": output}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        kill = json.loads(os.environ.get("KILL", "null"))
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if kill and first and int(os.environ.get("RANK", "0")) == kill["rank"]:
            arm(kill)
        start(sys.argv[1], sys.argv[2:])
