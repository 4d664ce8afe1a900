"""Run recipes as a user does, from the root of the repository, on a tiny corpus."""

import io
import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState

from decero.evaluation import report
from decero.training.runs import _LOCKS as LOCKS

ROOT = Path(__file__).parents[2]
TOPICS = {
    "sport": "the team won the match after a late goal by the young striker in front of a loud crowd",
    "money": "the bank raised its rate as shares fell and the market feared a weaker profit this year",
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Write 90 short texts of two topics into one jsonl file per split."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(5)
    for split, size in {"train": 60, "validation": 15, "test": 30}.items():
        rows = []
        for number in range(size):
            topic = list(TOPICS)[number % 2]
            text = " ".join(draw.choices(TOPICS[topic].split(), k=draw.randint(6, 19)))
            rows.append({"text": text, "label": topic, "tags": [topic] if number % 3 else [], "score": len(text) / 10})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@contextmanager
def little_drawn():
    """Draw each figure once, as SVG: its PNG is the same drawing again. Time steps for a moment only."""
    draw = report.render
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "render", lambda figure, kind: draw(figure, kind) if kind == "svg" else b"")
        for measured in ("comparison.time_needed.SECONDS", "planning.probe.SECONDS", "planning.budget.PROBE_SECONDS"):
            patched.setattr(f"decero.{measured}", 0.1)
        yield


class Done(NamedTuple):
    """The output and exit code of a recipe."""

    returncode: int
    stdout: str
    stderr: str


def alone(recipe: str, words: list[str]) -> Done:
    """Run a recipe as `__main__` in this process, which saves ten seconds of imports each time."""
    out, err, argv, folder = io.StringIO(), io.StringIO(), sys.argv, Path.cwd()
    sys.argv, code = [f"recipes/{recipe}.py", *words], 0
    os.chdir(ROOT)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with redirect_stdout(out), redirect_stderr(err), little_drawn():
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = argv
        os.chdir(folder)
        while LOCKS:  # an ended process would release its folder
            LOCKS.pop().release()
    return Done(code, out.getvalue(), err.getvalue())


def launched(recipe: str, words: list[str], launcher: Sequence[str]) -> Done:
    """Run a recipe in its own processes, with accelerate's launcher if options are given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "WORLD_"))}
    env = clean | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    start = [sys.executable, *(["-m", "accelerate.commands.launch", *launcher] if launcher else [])]
    done = subprocess.run(
        [*start, f"recipes/{recipe}.py", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def launch():
    """Run a recipe and return its result. `launcher`: launcher options; () a bare process; None this process."""

    def run(recipe, *words, launcher=None, expect=0):
        texts = list(map(str, words))
        done = alone(recipe, texts) if launcher is None else launched(recipe, texts, launcher)
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def two_processes():
    return "--config_file", "configs/accelerate/cpu_2_processes.yaml", "--main_process_port", "0"


@pytest.fixture(scope="session")
def write_config(tmp_path_factory, corpus):
    """Write a configuration file with the corpus filled in."""

    def write(name, text):
        path = tmp_path_factory.mktemp("configs") / f"{name}.yaml"
        files = ", ".join(f"{s}: {corpus}/{s}.jsonl" for s in ("train", "validation", "test"))
        path.write_text(text.replace("FILES", f"{{{files}}}"))
        return path

    return write


@pytest.fixture(scope="session")
def trained_tokenizer(launch, write_config, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tokenizer"
    config = write_config(
        "tokenizer", f"output: {output}\ndata: {{files: FILES}}\ntokenizer: {{vocab_size: 90, lowercase: true}}\n"
    )
    launch("train_tokenizer", config)
    return output / "model"


@pytest.fixture(scope="session")
def architecture(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(
        "model_type: decero_encoder\nvocab_size: 97\nhidden_size: 22\nnum_hidden_layers: 2\nnum_attention_heads: 1\n"
        "intermediate_size: 37\nmax_position_embeddings: 31\nclassifier_pooling: mean\n"
    )
    return path


@pytest.fixture(scope="session")
def mlm(write_config, trained_tokenizer, architecture):
    return write_config(
        "mlm",
        f"""\
output: OUTPUT
seed: 3
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data: {{files: FILES, max_length: 29}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training:
  {{max_train_steps: 50, global_batch_size: 7, per_device_batch_size: 3, logging_steps: 1, eval_strategy: steps,
  eval_steps: 25}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="session")
def classify(write_config, trained_tokenizer, architecture):
    return write_config(
        "classify",
        f"""\
output: OUTPUT
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data: {{files: FILES, max_length: 29}}
optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 50, global_batch_size: 7, per_device_batch_size: 3, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="session")
def sentinels(launch, write_config, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tokenizer"
    settings = "{algorithm: unigram, vocab_size: 110, num_sentinels: 11}"
    launch("train_tokenizer", write_config("t", f"output: {output}\ndata: {{files: FILES}}\ntokenizer: {settings}\n"))
    return output / "model"


@pytest.fixture(scope="session")
def shape(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(
        "model_type: decero_encoder_decoder\nvocab_size: 113\nhidden_size: 22\nnum_hidden_layers: 2\n"
        "num_attention_heads: 1\nintermediate_size: 37\nmax_position_embeddings: 61\npad_token_id: 0\neos_token_id: 1\n"
        "initializer_range: 0.1\n"
    )
    return path


@pytest.fixture(scope="session", params=["decero_decoder", "decero_encoder_decoder"])
def other_shape(request, tmp_path_factory):
    """A tiny decoder, then a tiny encoder-decoder, as setting of a recipe for encoders."""
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(
        f"model_type: {request.param}\nvocab_size: 97\nhidden_size: 22\nnum_hidden_layers: 2\nnum_attention_heads: 1\n"
        "intermediate_size: 37\nmax_position_embeddings: 31\n"
    )
    return f"model={{config: {path}}}"


@pytest.fixture(scope="session")
def translate(write_config, sentinels, shape, tmp_path_factory):
    """Write pairs of a language of five words and its translation."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(7)
    words = {"team": "bank", "match": "rate", "goal": "profit", "late": "weaker", "crowd": "market"}
    for split, size in {"train": 83, "validation": 13, "test": 17}.items():
        rows = [draw.choices(list(words), k=draw.randint(1, 5)) for _ in range(size)]
        lines = [{"en": " ".join(row), "es": " ".join(words[word] for word in row)} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ", ".join(f"{split}: {folder}/{split}.jsonl" for split in ("train", "validation", "test"))
    return write_config(
        "translate",
        f"""\
output: OUTPUT
model: {{config: {shape}}}
tokenizer: {{name_or_path: {sentinels}}}
data:
  tasks: {{swap: {{files: {{{files}}}, source_column: en, target_column: es, prefix: "the bank: "}}}}
  max_source_length: 47
  max_target_length: 41
objective: {{label_smoothing: 0.1}}
generation: {{metric: translation, max_new_tokens: 29, validation_rows: 5}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 5}}
training:
  {{max_train_steps: 30, global_batch_size: 13, per_device_batch_size: 6, logging_steps: 1, eval_strategy: steps,
  eval_steps: 15, save_steps: 10}}
tracking: {{trackers: []}}
""",
    )
