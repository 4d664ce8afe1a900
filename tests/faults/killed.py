"""Kill a run (SIGKILL) at a chosen point. decero itself has no code for this.

    arm({"point", "call", "rank", "signal"})      this process dies at that call of that point; SIGSTOP makes it hang
    KILL='{...}' accelerate launch killed.py RECIPE WORDS...      kills one rank of several

Processes that the launcher restarted are not killed again.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def points():
    """Return the points by name: (objects, function name, when to die: before, in the midst or after, which file)."""
    import datasets
    import torch
    from huggingface_hub import HfApi
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from decero.data import stream
    from decero.data.order import Rows
    from decero.tasks import TASKS
    from decero.training import checkpoint, loop, metrics_log

    def having(name):
        return {
            vars(each)[name]: each for task in TASKS.values() for each in task.__mro__ if name in vars(each)
        }.values()

    found = {
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
        "before an evaluation": (having("evaluate"), "evaluate", "before"),
        "after an evaluation": (having("evaluate"), "evaluate", "after"),
        "before scoring": (having("score"), "score", "before"),
        "after scoring": (having("score"), "score", "after"),
        "before the model is saved": (PreTrainedModel, "save_pretrained", "before"),
        "in the midst of saving the model": (PreTrainedModel, "save_pretrained", "midst", "model.safetensors"),
        "between model and tokenizer": (PreTrainedTokenizerBase, "save_pretrained", "before"),
        "after the tokenizer": (PreTrainedTokenizerBase, "save_pretrained", "after"),
        "before the record": (Path, "replace", "before", "result.json"),
        "after the record": (Path, "replace", "after", "result.json"),
        "before the push": (HfApi, "model_info", "before"),
        "in the push": (HfApi, "create_commit", "before"),
        "after the push": (HfApi, "create_commit", "after"),
    }
    return {point: (*how, "") if len(how) == 3 else how for point, how in found.items()}


def arm(kill):
    """Make the process die at the point of `kill`."""
    holders, name, moment, file = points()[kill["point"]]
    left, number = [kill["call"]], kill.get("signal", signal.SIGKILL)

    def counting(real, is_path):
        def counted(*args, **kwargs):
            meant = moment == "midst" or not file or any(str(arg).endswith(file) for arg in args)
            left[0] -= meant
            last = meant and left[0] == 0
            if last and moment == "before":
                die(number)
            result = real(*args, **kwargs)
            if last and moment == "midst":  # half of the file is on disk
                path = Path(args[0] if is_path else args[1], file)
                os.truncate(path, path.stat().st_size // 2)
            if last:
                die(number)
            return result

        return counted

    single = isinstance(holders, type) or not hasattr(holders, "__iter__")
    for holder in [holders] if single else holders:
        setattr(holder, name, counting(getattr(holder, name), holder is Path))


if __name__ == "__main__":
    kill = json.loads(os.environ.get("KILL", "null"))
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if kill and first and int(os.environ.get("RANK", "0")) == kill["rank"]:
        arm(kill)
    os.chdir(ROOT)
    sys.argv = [f"recipes/{sys.argv[1]}.py", *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
