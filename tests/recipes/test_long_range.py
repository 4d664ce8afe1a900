"""The long-range experiments as a user runs them: tiny versions of the configs, resuming, refused settings."""

import json

import pytest
import torch
from tests.recipes.conftest import ROOT

from decero.config.long_range import EXPERIMENTS, LongRange
from decero.errors import UserError

CONFIGS = ROOT / "configs" / "long_range"
SHAPE = "{hidden_size: 10, num_hidden_layers: 2, num_attention_heads: 1, intermediate_size: 7}"
SMALL = {  # settings that make an experiment tiny
    "gradients": "length=19 distances=[1,5,17] seeds=[0,1] max_train_steps=2 global_batch_size=3 train_rows=7 rows=2",
    "speed": "lengths=[8,16] batch_tokens=32 rounds=3",
    "recall": "length=12 num_pairs=2 vocab_size=31 seeds=[0,1] max_train_steps=2 global_batch_size=3 train_rows=7 "
    "eval_rows=3 learning_rates=[1e-3,2e-3,3e-3]",
    "copying": "length=11 num_tokens=2 seeds=[0,1] max_train_steps=2 global_batch_size=3 train_rows=7 eval_rows=3 "
    "learning_rates=[1e-3,2e-3,3e-3]",
    "list_ops": "length=22 max_depth=2 max_arguments=3 seeds=[0,1] max_train_steps=2 global_batch_size=3 train_rows=7 "
    "eval_rows=3 learning_rates=[1e-3,2e-3,3e-3]",
}


def tiny(*names):
    """Return the words that make these experiments of a config tiny, with two arms."""
    words = []
    for name in names:
        words += [f"{name}.{word}" for word in SMALL[name].split(" ")]
        words += [f"{name}.arms=[attention,LSTM]", f"{name}.overrides={SHAPE}"]
    return words


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_page_of_the_claims_is_made_by_one_command(launch, tmp_path):
    folder = tmp_path / "run"
    none = [f"{name}=null" for name in ("copying", "list_ops")]
    words = [CONFIGS / "claims.yaml", f"output={folder}", *tiny("gradients", "speed", "recall"), *none]
    printed = launch("long_range", *words).stdout
    record = json.loads((folder / "result.json").read_text())
    page = (folder / "long_range.md").read_text()
    assert record["table"] in printed
    assert record["table"] in page
    assert record["metric"].keys() == {"gradients", "speed", "recall"}
    assert set(record["metric"].values()) <= {"holds", "does not hold here", "needs parallel hardware"}
    for name in record["metric"]:
        assert f"]({name}.svg)" in page
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    found = record["experiments"]
    assert [len(found["gradients"]["arms"][arm]) for arm in ("attention", "LSTM")] == [2, 2]
    deep = found["speed"]["lengths"]["16"]["arms"]
    assert (deep["attention"]["sequential"], deep["LSTM"]["sequential"]) == (2, 32)
    for arm in found["recall"]["arms"].values():
        assert [trial["rate"] for trial in arm["trials"]] == [1e-3, 2e-3, 3e-3]
        assert [(run["seed"], run["rate"]) for run in arm["runs"]] == [(0, arm["rate"]), (1, arm["rate"])]
        best = max(arm["trials"], key=lambda trial: (trial["validation"]["accuracy"], -trial["validation"]["loss"]))
        assert best == arm["runs"][0]
    assert "any value of the text" in page

    files = {path: path.stat().st_mtime_ns for path in folder.glob("recall/*/*/result.json")}
    lost = next(path for path in files if path.parent.name == "rate-0.002-seed-0")
    before = json.loads(lost.read_text())
    lost.unlink()
    (folder / "result.json").unlink()
    launch("long_range", *words, "--resume")
    again = json.loads(lost.read_text())
    assert again["test"] == before["test"]
    assert again["curve"] == before["curve"]
    assert all(path.stat().st_mtime_ns == time for path, time in files.items() if path != lost)
    assert record["table"].splitlines()[0] in launch("long_range", *words, "--resume").stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_runs_in_small(launch, tmp_path, name):
    words = [CONFIGS / f"{name}.yaml", f"output={tmp_path}/run", *tiny(name)]
    assert "nothing was trained or written" in launch("long_range", *words, "--dry-run").stdout
    launch("long_range", *words)
    assert (tmp_path / "run" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("config", "word", "says"),
    [
        ("recall", "recall.learning_rates=[1e-3,3e-3]", "recall.learning_rates is .*at least 3 items"),
        ("recall", "recall.learning_rates=[1e-3,3e-3,3e-3]", "learning_rates: a value appears twice"),
        ("recall", "recall.num_pairs=17", "recall.num_pairs 17 needs recall.length 68; raise it"),
        ("recall", "recall.vocab_size=64", "recall.num_pairs 8 needs recall.vocab_size 90; raise it"),
        ("recall", "recall.arms=[attention,LSTN]", "recall.arms: unknown arm LSTN; did you mean LSTM"),
        ("recall", "recall.arms=[LSTM,GRU]", "recall.arms: name attention, the reference, and at least one other"),
        ("recall", "recall=null", "nothing to do; give one of gradients, speed, recall, copying, list_ops"),
        ("recall", "reference=Attention", "reference: unknown arm Attention; did you mean attention"),
        ("copying", "copying.num_tokens=70", "copying.num_tokens 70 needs a length of 140; raise it"),
        ("list_ops", "list_ops.max_depth=1", "list_ops.length 64: rows have a half of it or more; give 14 to 14"),
        ("gradients", "gradients.distances=[1,256]", "gradients.distances: 256 reaches beyond a row"),
        ("gradients", "gradients.seeds=[0]", "gradients.seeds is .*at least 2 items"),
        ("speed", "speed.lengths=[64,8192]", "speed.batch_tokens 4096 holds no row of 8192; raise it"),
        ("speed", "speed.overrides={hidden_size: -3}", "hidden_size"),
    ],
)
def test_impossible_experiments_are_refused(config, word, says):
    with pytest.raises(UserError, match=says):
        LongRange.load(str(CONFIGS / f"{config}.yaml"), [word])
