"""Run programs as children of a process that has imported everything once: a case costs its own time, no imports.

    server = Server(folder)
    done = server.run("pretrain_mlm", ["config.yaml", "output=x"], limit=60)     done.code, done.out, done.err

Programs: the name of a recipe, `decero`, or `module:function` of the tests. A child has its own session, core, home and
caches under `place`, one thread, limits of time, memory and file size, and the texts that it prints go to files.
A `bare` child begins with torch and transformers alone: decero was never imported there.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib.util
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEMORY, FILE_SIZE = 6 << 30, 1 << 30  # bytes that a child may take beyond what it is born with, and write to one file
PR_SET_PDEATHSIG = 1  # linux/prctl.h
HANG = "hang"  # the exit code of a child that ran out of time


@dataclass
class Done:
    """How a program ended. code: -9 if a rank was killed, else the first other than 0; `HANG` when time ran out."""

    code: int | str
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}"


class Server:
    """The side of the caller. folder: for whatever a child writes that belongs to no case."""

    def __init__(self, folder: Path, core: int = 0):
        self.folder, self.lock = folder, threading.Lock()
        cores = sorted(os.sched_getaffinity(0))
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "PYTEST_", "HF_"))}
        env |= threads | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # a thread does not survive a fork
        env |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        env |= {
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", str(cores[core % len(cores)])],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, program, words, *, kill=None, ranks=1, limit=120, place=None, cwd=ROOT, stdin=b"", hub=None, bare=False
    ) -> Done:
        """Run a program to its end. kill: see killed.py. place: folder for its home, caches and output."""
        place = place or self.folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "stdin").write_bytes(stdin)
        order = {"program": program, "words": list(map(str, words)), "kill": kill, "ranks": ranks, "limit": limit}
        order |= {"place": str(place), "cwd": str(cwd), "hub": hub, "bare": bare}
        with self.lock:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        out, err = (
            "".join((place / f"{name}-{rank}").read_text(encoding="utf-8", errors="replace") for rank in range(ranks))
            for name in ("out", "err")
        )
        return Done(answer["code"], out, err, answer["seconds"])

    def close(self):
        self.process.kill()
        self.process.wait()


def child(order, rank, port) -> int:
    """Start one rank in its own process; return the process id."""
    if number := os.fork():
        return number
    gc.enable()
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # an interrupted test run leaves no children
    place = Path(order["place"])
    for descriptor, name in ((1, f"out-{rank}"), (2, f"err-{rank}")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(place / "stdin", os.O_RDONLY), 0)
    for name in ("home", "cache", "tmp"):
        (place / name).mkdir(exist_ok=True)
    os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    import datasets
    import torch

    datasets.config.HF_DATASETS_CACHE = place / "cache"
    torch.seed()  # what is drawn without a seed differs from run to run
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    faulthandler.dump_traceback_later(max(1, order["limit"] - 2), exit=False)
    if order["ranks"] > 1:
        ranks = {"RANK": rank, "WORLD_SIZE": order["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": order["ranks"]}
        os.environ.update({name: str(value) for name, value in ranks.items()})
    code = 0
    try:
        if order["hub"]:
            use_hub(order["hub"])
        if order["kill"] and order["kill"].get("rank", 0) == rank:
            from tests.faults.killed import arm

            arm(order["kill"])
        os.chdir(order["cwd"])
        start(order["program"], order["words"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def start(program, words):
    if ":" in program:
        module, _, function = program.partition(":")
        return getattr(importlib.import_module(module), function)(*words)
    if program == "decero":
        from decero.cli.main import main

        sys.argv = ["decero", *words]
        return main(words)
    sys.argv = [str(ROOT / "recipes" / f"{program}.py"), *words]
    return runpy.run_path(sys.argv[0], run_name="__main__")


def use_hub(hub):
    """Let the library reach the fake hub (tests/hub/conftest.py) at a URL. Retries do not wait."""
    from huggingface_hub import constants

    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = hub["url"], False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub["url"] + "/{repo_id}/resolve/{revision}/{filename}"
    os.environ["HF_TOKEN"] = hub["token"]
    time.sleep = lambda seconds: None


def answer(order) -> dict:
    """Run an order; end what outlives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    ranks = {child(order, rank, port) for rank in range(order["ranks"])}
    alive, codes, late = set(ranks), [], False
    while alive:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number in alive:
            alive.remove(number)
            if code := os.waitstatus_to_exitcode(status):
                codes.append(code)
                for other in alive:  # what a launcher does with the others
                    os.kill(other, signal.SIGTERM)
        elif not number:
            time.sleep(0.005)
        if alive and time.monotonic() - began > order["limit"]:
            late = True
            for other in alive:
                os.killpg(other, signal.SIGKILL)
    for number in ranks:  # such as workers that read data
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)
    code = HANG if late else -9 if -9 in codes else [*codes, 0][0]
    return {"code": code, "seconds": round(time.monotonic() - began, 3)}


def serve(core: int):
    os.sched_setaffinity(0, {core})
    import_all(BARE)
    assert "decero" not in sys.modules
    warm = None
    for line in sys.stdin:
        if (order := json.loads(line))["bare"]:
            print(json.dumps(answer(order)), flush=True)
        else:
            warm = warm or start_warm()
            print(line, end="", file=warm[0], flush=True)
            print(warm[1].readline(), end="", flush=True)


def start_warm():
    """Start the process whose children begin with decero; return where to write its orders and to read its answers."""
    orders, answers = os.pipe(), os.pipe()
    if os.fork():
        os.close(orders[0])
        os.close(answers[1])
        return os.fdopen(orders[1], "w"), os.fdopen(answers[0])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(orders[0], 0)
    os.dup2(answers[1], 1)
    for each in (*orders, *answers):
        os.close(each)
    late = "torch.nn.modules.linear_cross_entropy"  # of torch 2.13; its first call imports it
    import_all([*WARM, *([late] if importlib.util.find_spec(late) else [])])
    with open(0, closefd=False) as lines:
        for line in lines:
            print(json.dumps(answer(json.loads(line))), flush=True)
    os._exit(0)


def import_all(names):
    """Import modules. Garbage collections of the children leave out what is there now."""
    gc.disable()
    for name in names:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose the other threads"


def script(modules_cache, code, *words):
    """Run code as `python -c CODE WORDS` does, with a folder for the code of model folders."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.HF_MODULES_CACHE = modules_cache
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


# What every program that loads a model imports.
BARE = ("torch", "transformers", "transformers.modeling_utils", "transformers.generation", "safetensors.torch")
# What recipes and commands import, and the stock models of model_folders.py.
WARM = (
    "decero.tasks", "decero.cli.main", "decero.inference", "decero.doctor.examination", "decero.hub.convert",
    "decero.hub.publish", "decero.comparison.execute", "decero.comparison.collect", "decero.evaluation.report",
    "decero.benchmark.session", "decero.tasks.likelihood", "decero.data.corpus_texts", "accelerate.tracking",
    "datasets.packaged_modules.csv.csv", "datasets.packaged_modules.json.json", "datasets.packaged_modules.text.text",
    "datasets.packaged_modules.parquet.parquet", "torch.utils.tensorboard", "sacrebleu", "rouge_score.rouge_scorer",
    "evaluate", "sklearn.metrics",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "gpt2", "llama", "t5", "bart")),
)  # fmt: skip

if __name__ == "__main__":
    serve(int(sys.argv[1]))
