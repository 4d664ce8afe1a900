"""The end of a run that is disturbed: full disk, failing scores, a push that did not happen, a moved folder."""

import json
import shutil
import subprocess

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.config.yaml_files import read_yaml
from decero.errors import UserError
from decero.tasks.finish import push_once

WORDS = ("training.max_train_steps=4", "training.eval_steps=4", "training.save_steps=null")
FULL = "I/O error: No space left on device (os error 28)"


def raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def lines_of(done):
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def model_of(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(launch, mlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    launch("pretrain_mlm", mlm, *WORDS, f"output={folder}")
    return folder


def test_without_save_steps_no_checkpoint_is_left(undisturbed):
    left = {path.name for path in undisturbed.iterdir()} - {".lock", "logs"}
    assert left == {".places.json", "config.yaml", "metrics.jsonl", "model", "predictions.parquet", "result.json"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (PreTrainedModel, "save_pretrained", SafetensorError(FULL)),
        (PreTrainedTokenizerBase, "save_pretrained", Exception("No space left on device (os error 28)")),
        ("decero.training.records", "write_json", OSError(28, "No space left on device")),
        ("decero.tasks.masked_lm.MaskedLM", "score", UserError("nothing can be scored")),
    ],
)
def test_a_disturbed_end_loses_no_training(launch, mlm, undisturbed, tmp_path, monkeypatch, place, name, error):
    words = mlm, *WORDS, f"output={tmp_path}/run"
    target = (f"{place}.{name}",) if isinstance(place, str) else (place, name)
    monkeypatch.setattr(*target, raises(error))
    assert len(lines_of(launch("pretrain_mlm", *words, expect=2))) == 1
    assert (tmp_path / "run" / "model").exists() == (name != "save_pretrained")
    monkeypatch.undo()
    printed = launch("pretrain_mlm", *words, "--resume").stdout
    assert "at step 4 of 4" in printed
    assert model_of(tmp_path / "run") == model_of(undisturbed)
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".model") or p.name == "checkpoints"]
    records = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", undisturbed))
    ours, theirs = (record["metric"] for record in records)
    assert ours == theirs


def test_scores_that_are_not_finite_end_the_run(launch, mlm, tmp_path, monkeypatch):
    monkeypatch.setattr("decero.tasks.masked_lm.MaskedLM.score", lambda *_: ({"eval_loss": float("nan")}, {}))
    (line,) = lines_of(launch("pretrain_mlm", mlm, *WORDS, f"output={tmp_path}/run", expect=2))
    assert "the scores are not finite (eval_loss nan)" in line
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_moved_run_is_resumed(launch, mlm, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "moved")
    words = mlm, *WORDS, "--resume"
    assert "is finished" in launch("pretrain_mlm", *words, f"output={tmp_path}/moved").stdout
    assert read_yaml(tmp_path / "moved" / "config.yaml")["output"] == f"{tmp_path}/moved"
    assert "is finished" in launch("pretrain_mlm", *words, f"output={tmp_path}/x/../moved").stdout


DAMAGED = [
    b"\xff",
    b"{",
    b"3",
    b"{}",
    b"[" * 100_000,
    b'{"finished": "x"}',
    b'{"finished": "x", "metric": {}, "best": {"a": 1}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_one_line_with_a_mend(launch, mlm, undisturbed, tmp_path, text):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_bytes(text)
    (line,) = lines_of(launch("pretrain_mlm", mlm, *WORDS, f"output={tmp_path}/run", "--resume", expect=2))
    assert "result.json: damaged: " in line
    assert "delete this file" in line


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub: `pushed` lists what arrived; an `error` is raised instead."""

    class Hub:
        pushed, error = [], None

    def push(folder, repo_id, private, license, languages):
        if Hub.error:
            raise Hub.error
        assert (folder.parent / "result.json").is_file()
        Hub.pushed.append((folder.name, repo_id))

    monkeypatch.setattr("decero.training.runs.get_token", lambda: "a token")
    monkeypatch.setitem(push_once.__globals__, "push", push)
    return Hub


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["pretrain_mlm", "train_tokenizer"])
@pytest.mark.parametrize("error", [UserError("the hub does not answer"), KeyboardInterrupt()])
def test_finished_means_pushed(launch, write_config, mlm, hub, tmp_path, recipe, error):
    words = [mlm, *WORDS]
    if recipe == "train_tokenizer":
        words = [write_config("t", "output: OUTPUT\ndata: {files: FILES}\ntokenizer: {vocab_size: 90}\n")]
    words += [f"output={tmp_path}/run", "hub.repo_id=me/tiny"]
    hub.error, hub.pushed = error, []
    done = launch(recipe, *words, expect=2 if isinstance(error, UserError) else 130)
    assert lines_of(done) == (
        ["error: the hub does not answer; --resume pushes it again"] if isinstance(error, UserError) else []
    )
    hub.error = None
    for _ in range(2):
        assert "is finished" in launch(recipe, *words, "--resume").stdout
        assert hub.pushed == [("model", "me/tiny")]
    launch(recipe, *words, "hub.repo_id=me/other", "--resume")
    assert hub.pushed[1:] == [("model", "me/other")]
    (tmp_path / "run" / "result.json").unlink()
    launch(recipe, *words, "hub.repo_id=me/other", "--resume")
    assert hub.pushed[2:] == [("model", "me/other")], "another model was saved, so it is pushed"


def test_a_finished_run_without_its_model_says_so(launch, mlm, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (line,) = lines_of(launch("pretrain_mlm", mlm, *WORDS, f"output={tmp_path}/run", "--resume", expect=2))
    assert "model is gone; delete result.json" in line


@pytest.fixture
def comparison(write_config, trained_tokenizer, architecture, tmp_path):
    return write_config(
        "compare",
        f"""\
output: {tmp_path}/compare
reference: ours
contenders:
  ours: {{model: {{config: {architecture}}}, tokenizer: {{name_or_path: {trained_tokenizer}}}}}
  words: {{tfidf: true}}
seeds: [0]
keep_models: true
data: {{files: FILES, max_length: 29}}
training: {{max_train_steps: 2, global_batch_size: 8, per_device_batch_size: 8, eval_strategy: "no"}}
tracking: {{trackers: []}}
""",
    )


def test_a_full_disk_ends_a_comparison_that_keeps_models(launch, comparison, tmp_path, monkeypatch):
    cell = tmp_path / "compare" / "runs" / "ours" / "labels-all" / "seed-0"
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", raises(SafetensorError(FULL)))
    (line,) = lines_of(launch("compare", comparison, expect=2))
    assert f"{cell}/model: cannot be written: No space left on device" in line
    assert not (cell / "result.json").exists()  # the contender has not failed
    monkeypatch.undo()
    launch("compare", comparison, "--resume")
    assert json.loads((cell / "result.json").read_text())["status"] == "ok"
    assert (cell / "model" / "config.json").is_file()
    assert not (cell / "checkpoints").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small file system; call it to give it another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)

    if mount("size=1m").returncode:
        pytest.skip("only root may mount")
    yield place, lambda size: mount("remount", f"size={size}")
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 20, *range(40, 300, 20)])
def test_a_full_disk_without_save_steps_loses_nothing(launch, mlm, undisturbed, small_disk, kilobytes):
    place, resize = small_disk
    resize(f"{kilobytes}k")
    words = mlm, *WORDS, f"output={place}/run"
    try:
        done = launch("pretrain_mlm", *words, expect=2)
    except AssertionError:
        done = launch("pretrain_mlm", *words, "--resume")  # it was enough
        assert "is finished" in done.stdout
    else:
        (line,) = lines_of(done)
        assert "No space left on device" in line
        trained = "nothing is trained" not in line and "metrics.jsonl" not in line and "cannot be written" in line
        resize("50m")
        again = launch("pretrain_mlm", *words, "--resume").stdout
        assert ("at step 4 of 4" in again) or not trained
    assert model_of(place / "run") == model_of(undisturbed)
