"""Fixtures that every room's tests use: no network, a cache of their own, a tiny corpus, a tiny tokenizer and model."""

import atexit
import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))  # also for the children of xdist
CACHE = tempfile.mkdtemp(prefix="decero-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["HF_HOME"] = CACHE
os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of anything that reads it
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))  # one for each worker and what it starts: threads that share a core wait
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# The process that only hands tests to the workers imports this file, too: large libraries are imported in fixtures.
import pytest
from hypothesis import HealthCheck, settings
from tests.faults.server import Server

import decero  # noqa: F401 (registers the models)

gc.disable()  # until all tests are collected: it would visit a million objects again and again

# On a busy machine drawing examples may be slow; that is no failure of a test. `make test-slow` draws more of them.
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", QUIET, max_examples=25)
settings.register_profile("thorough", QUIET, max_examples=400)
settings.register_profile("faults", QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that at the end no worker waits long for the others."""
    long = {item.path for item in items if {"launch", "server"} & set(item.fixturenames)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish(session):
    """Exclude libraries and the tests themselves from garbage collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


LINE = "the market rose fell sharply on monday as banks and shares in london gained after profit news from tokyo"
WORDS = LINE.split(" ")


@pytest.fixture(autouse=True)
def _quiet_and_alone(monkeypatch):
    """No test reaches beyond this machine, and none draws from a random state that another left."""
    import datasets
    import torch

    connect = socket.socket.connect

    def refuse(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    datasets.disable_progress_bars()
    torch.default_generator.manual_seed(0)  # torch.manual_seed also prints a stack for each kind of device


def sentence(number: int, length: int) -> str:
    """A pure function of its arguments, so that no test depends on another's random draws."""
    return " ".join(WORDS[(number * 7 + i * i * (number % 5 + 1)) % len(WORDS)] for i in range(length))


@pytest.fixture(scope="session")
def texts():
    return [sentence(n, 5 + n * 3 % 23) for n in range(61)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from decero.data.tokenizer import train_tokenizer

    return train_tokenizer(
        texts,
        algorithm="wordpiece",
        vocab_size=97,
        model_max_length=64,
        lowercase=True,
        min_frequency=1,
        show_progress=False,
    )


@pytest.fixture(scope="session")
def sentinel_tokenizer(texts):
    """T5's special tokens and 13 sentinels."""
    from decero.data.tokenizer import train_tokenizer

    return train_tokenizer(
        texts, algorithm="unigram", vocab_size=113, model_max_length=64, num_sentinels=13, show_progress=False
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    """A tiny architecture without dropout, as a preset file."""
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(
        "model_type: decero_encoder\nvocab_size: 101\nhidden_size: 22\nnum_hidden_layers: 2\nnum_attention_heads: 1\n"
        "intermediate_size: 37\nmax_position_embeddings: 64\nclassifier_pooling: mean\n"
    )
    return str(path)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Run programs in processes of their own, which begin with all imports done; also several that belong together."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture
def elsewhere(server, tmp_path, monkeypatch):
    """Check exports in a child of a process that has imported transformers and never decero: it spares the imports."""

    def run(command, *, env, cwd, **options):
        words = [env["HF_MODULES_CACHE"], *command[2:]]
        done = server.run("tests.faults.server:script", words, bare=True, place=tmp_path / "elsewhere", cwd=cwd)
        return subprocess.CompletedProcess(command, done.code, done.out, done.err)

    monkeypatch.setattr("decero.hub.remote_code.subprocess", SimpleNamespace(run=run))


# --- a tiny masked-language-model run that takes a second


@pytest.fixture
def rows(texts, tokenizer):
    from datasets import Dataset

    from decero.data.tokenization import tokenize_documents

    return tokenize_documents(Dataset.from_dict({"text": texts}), tokenizer, max_length=48)


@pytest.fixture
def objective(tokenizer):
    from decero.data.collators import MaskedLanguageModeling
    from decero.execution.objective import masked_lm

    return masked_lm(MaskedLanguageModeling(tokenizer, seed=1))


@pytest.fixture
def tiny_model():
    from transformers import AutoModelForMaskedLM, set_seed

    from decero.models import DeceroEncoderConfig

    def build(dropout=0.0, **fields):
        set_seed(0)
        sizes = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1}
        sizes |= {"intermediate_size": 37, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**(sizes | fields)))

    return build


@pytest.fixture
def fit(rows, objective, tiny_model, tmp_path):
    """Train a tiny model; returns the result. Settings of training and optim may be laid over."""
    from accelerate import Accelerator

    from decero.config.sections import OptimSection, TrainingSection
    from decero.training.loop import train
    from decero.training.runs import Run

    def run(
        output=tmp_path, *, model=None, evaluate=None, resume=False, optim=None, dataset=rows, objective=objective,
        **training,
    ):  # fmt: skip
        settings = {"max_train_steps": 6, "global_batch_size": 12, "per_device_batch_size": 5, "logging_steps": 1}
        run = Run(
            Accelerator(cpu=True), TrainingSection(**(settings | training)),
            OptimSection(**({"learning_rate": 1e-2} | (optim or {}))), output, seed=4, resume=resume, progress=False,
        )  # fmt: skip
        return train(run, model or tiny_model(), dataset, objective, evaluate)

    return run
