"""One broken contender: the others finish, the report says which failed and why, and --resume retries it alone."""

import html
import json
import os
import re
import shutil

import pytest
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

from decero.comparison.collect import check_failures, facts, failures, verdict_of
from decero.comparison.execute import execute
from decero.comparison.plan import make_plan
from decero.comparison.run_records import curve_in, record_in
from decero.config.comparison import Compare
from decero.errors import UserError
from decero.evaluation.report import write_report
from decero.training.runs import Run

SIZES = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 5}


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """A stock classifier. Call it for a copy of another name."""
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    return lambda name: shutil.copytree(tmp_path / "whole", tmp_path / name)


@pytest.fixture
def compare(tmp_path):
    """Run a comparison of contenders as the recipe does. Returns its runs; without report, their states."""
    for split, size in {"train": 12, "test": 6}.items():
        rows = [{"text": f"the bank {n}" if n % 2 else f"a match {n}", "label": "ab"[n % 2]} for n in range(size)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(contenders, resume=False, report=True):
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        few = {"max_train_steps": 1, "per_device_batch_size": 4, "global_batch_size": 4, "eval_strategy": "no"}
        settings = {
            "output": str(tmp_path / "out"), "reference": "ours", "contenders": contenders, "seeds": [0],
            "data": {"files": files, "max_length": 9}, "training": few, "tracking": {"trackers": []},
        }  # fmt: skip
        config = Compare.parse(settings, "compare.yaml")
        config.call.resume = resume
        config.folder.mkdir(exist_ok=True)
        plan = make_plan(config)
        execute(plan, Run(Accelerator(cpu=True), config.training, config.optim, config.folder))
        if not report:
            return [record_in(run.folder)["status"] for run in plan.runs]
        verdict, runs = verdict_of(plan)
        write_report(config.folder, "x", verdict, runs, facts=facts(plan), tuning=[], notes=failures(runs))
        return runs

    return run


def truncate(folder):
    os.truncate(folder / "model.safetensors", 2000)


def spoil_tensor(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.bert.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    model.save_pretrained(folder)


def list_of_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def other_kind(folder):
    AutoConfig.for_model("vit").save_pretrained(folder)


def rename(folder):
    folder.rename(folder.with_name("elsewhere"))


SPOILS = {spoil.__name__: spoil for spoil in (truncate, spoil_tensor, list_of_weights, other_kind, rename)}


@pytest.mark.long
def test_broken_contenders_fail_alone_and_are_retried(compare, checkpoint, tmp_path, capfd):
    contenders = {name: {"model": {"name_or_path": str(checkpoint(name))}} for name in (*SPOILS, "ours")}
    contenders["words"] = {"tfidf": True}
    for name, spoil in SPOILS.items():
        spoil(tmp_path / name)
    runs = compare(contenders)
    assert {run.contender: run.status for run in runs} == {
        **dict.fromkeys(SPOILS, "failed"),
        "ours": "ok",
        "words": "ok",
    }
    said, report = capfd.readouterr().out, html.unescape((tmp_path / "out" / "verdict.md").read_text())
    check_failures(runs, "ours")
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == len(failures(runs)) == len(SPOILS)
    for name, sentence, warning in zip(SPOILS, failures(runs), warnings, strict=True):
        assert f"/7] {name}, all labels, seed 0: failed: " in said
        assert re.match(rf"{name}: 1 of 1 runs failed, the first with: \S", sentence)
        assert sentence in report
        assert warning.startswith(f"warning: {sentence}; ")
        assert "--resume" in warning

    for name in SPOILS:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        checkpoint(name)
    records = [tmp_path / f"out/runs/{name}/labels-all/seed-0/result.json" for name in ("ours", "words")]
    kept = [path.read_text() for path in records]
    assert compare(contenders, resume=True, report=False) == ["ok"] * 7
    assert [path.read_text() for path in records] == kept


def test_a_training_that_fails_does_not_end_the_comparison(compare, checkpoint, monkeypatch):
    from decero.comparison import execute as module

    def train(opened, model, *rest):
        if "broken" in opened.tag:
            raise MemoryError("no room\nat all")
        return real(opened, model, *rest)

    real = module.train
    monkeypatch.setattr(module, "train", train)
    model = {"model": {"name_or_path": str(checkpoint("good"))}}
    runs = compare({"ours": model, "broken": model})
    assert [run.error for run in runs] == [None, "MemoryError: no room at all"]
    with pytest.raises(UserError, match=r"every contender but the reference failed .*broken: 1 of 1 runs failed"):
        check_failures(runs, "ours")
    with pytest.raises(UserError, match="every run of the reference broken failed; the first: MemoryError: no room"):
        check_failures(runs, "broken")


def test_a_full_disk_is_no_fault_of_a_contender(compare, monkeypatch):
    from decero.comparison import execute as module

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "score_baseline", full)
    with pytest.raises(OSError, match="No space left"):
        compare({"ours": {"tfidf": True}})


def test_damaged_results_are_made_again(compare, tmp_path):
    contenders = {"ours": {"tfidf": True}}
    compare(contenders, report=False)
    folder = tmp_path / "out/runs/ours/labels-all/seed-0"
    answers = (folder / "predictions.parquet").read_bytes()
    record = json.loads((folder / "result.json").read_text())
    for name, damage in {
        "result.json": b"{", "predictions.parquet": b"PAR1", "metrics.jsonl": b'{"step": 1, "los\n\xff\n[1]\n',
    }.items():  # fmt: skip
        (folder / name).write_bytes(damage)
        assert compare(contenders, resume=True, report=False) == ["ok"]
        assert json.loads((folder / "result.json").read_text())["metric"] == record["metric"]
        assert (folder / "predictions.parquet").read_bytes() == answers
    assert curve_in(folder) == []


DAMAGED = (
    "{", "[1]", "3", '{"status": "ok"}', '{"status": "ok", "metric": [1]}', '{"status": "ok", "metric": {"a": "x"}}',
    '{"status": "ok", "metric": {}, "wall_time_s": "x"}', "[" * 5000, "\xff",
)  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_counts_as_a_failed_run(tmp_path, text):
    assert record_in(tmp_path)["error"] == "left no record"
    (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
    assert record_in(tmp_path)["status"] == "failed"
    assert "result.json" in record_in(tmp_path)["error"]


def test_a_metric_that_is_no_number_is_nan_again(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "ok", "metric": {"pearson": null, "mse": 0.5}}')
    metric = record_in(tmp_path)["metric"]
    assert metric["pearson"] != metric["pearson"]
    assert metric["mse"] == 0.5
