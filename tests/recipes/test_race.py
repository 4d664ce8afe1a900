"""A race to a loss: one evaluation for both sides, an honest clock, and a rule for what is kept."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, set_seed

from decero.benchmark import judge, racing
from decero.benchmark.judge import Judge, Stopped, validation_objective, validation_rows
from decero.benchmark.race_table import race_table, record_line, summary
from decero.benchmark.racers import run_ours, run_stock
from decero.benchmark.stock_recipe import blocks, train_stock
from decero.config.benchmark import Benchmark
from decero.config.race import RaceSection, StockRecipe
from decero.config.sections import ModelSection
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError
from decero.execution.build import read_preset
from decero.hub.stock import to_stock

CPU = torch.device("cpu")
TINY = {"hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 37}


@pytest.fixture
def settings(corpus, trained_tokenizer, architecture, tmp_path):
    """Settings of a race that takes a second."""
    stock = tmp_path / "stock.yaml"
    sizes = TINY | {"num_hidden_layers": 2}
    stock.write_text(json.dumps({"model_type": "bert", "vocab_size": 97, "max_position_embeddings": 31} | sizes))
    files = {split: f"{corpus}/{split}.jsonl" for split in ("train", "validation")}
    return {
        "recipe": "pretrain_mlm", "tokenizer": {"name_or_path": str(trained_tokenizer)}, "seeds": [0, 5],
        "data": {"files": files, "max_length": 29}, "validation_rows": 5,
        "stock": {"model": {"config": str(stock)}, "max_train_steps": 4, "eval_steps": 2},
        "stock_variants": {"faster": {"learning_rate": 1e-2}},
        "ours": {
            "model": {"config": str(architecture)}, "optim": {"learning_rate": 1e-2},
            "training": {"max_train_steps": 9, "global_batch_size": 8, "per_device_batch_size": 8, "eval_steps": 3},
        },
        "candidates": {
            "hopeless": {"optim.learning_rate": 1e-9}, "mean": {"training": {"average_last": 2, "save_steps": 3}},
        },
    }  # fmt: skip


@pytest.fixture
def write(settings, tmp_path):
    def write(**more):
        path = tmp_path / "race.yaml"
        content = {"output": str(tmp_path / "run"), "race": settings, "tracking": {"trackers": []}} | more
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def here(monkeypatch):
    """Run each side in this process, and take half a second for a reference step. Returns what was run."""
    done = []

    class Here:
        def __init__(self, *args):
            self.args = args

        def follow(self, ask):
            section, name, seed, output = self.args
            done.append((name, seed))
            return (run_stock if section.is_stock(name) else run_ours)(section, name, seed, output, ask)

    class Half:
        def __init__(self, device):
            pass

        def seconds(self):
            return 0.5

    monkeypatch.setattr(racing, "Racer", Here)
    monkeypatch.setattr(racing, "ReferenceStep", Half)
    monkeypatch.setattr(racing, "render", lambda figure, kind: kind.encode())
    return done


def test_a_race_ends_at_the_loss_of_stock(launch, write, here, tmp_path):
    path, folder = write(), tmp_path / "run"
    printed = launch("benchmark", path).stdout
    record = json.loads((folder / "result.json").read_text())
    assert record["table"] in printed
    assert record["record_line"] in printed
    assert {"race.md", "race.png", "race.svg"} <= {path.name for path in folder.iterdir()}
    by_name = {(run["name"], run["seed"]): run for run in record["runs"]}
    others = ("faster", "ours", "hopeless", "mean")
    assert here == [("stock", 0), ("stock", 5), *((name, seed) for seed in (0, 5) for name in others)]
    assert record["target"] == pytest.approx((by_name["stock", 0]["loss"] + by_name["stock", 5]["loss"]) / 2)
    for seed in (0, 5):
        stock, ours = by_name["stock", seed], by_name["ours", seed]
        assert [point["step"] for point in stock["curve"]] == [2, 4]
        assert (stock["step"], stock["tokens"], stock["reached"]) == (4, 4 * 8 * 29, None)
        assert ours["reached"]
        assert ours["step"] < 9  # it stopped
        assert ours["loss"] <= record["target"] < min([9e9, *(point["loss"] for point in ours["curve"][:-1])])
        assert ours["reference_steps"] == pytest.approx(ours["seconds"] / 0.5)
        assert not by_name["hopeless", seed]["reached"]
        assert by_name["hopeless", seed]["step"] == 9
        logged = (folder / "runs" / f"ours-{seed}" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(logged[-1])["tokens"] == ours["tokens"]
    assert "| hopeless | 0 of 2 |" in record["table"]
    assert record["metric"]["ours"] > 0
    assert not list(folder.glob("runs/*/checkpoints"))

    for gone in (folder / "result.json", folder / "runs" / "ours-5.json"):
        gone.unlink()
    here.clear()
    launch("benchmark", path, "--resume")
    assert here == [("ours", 5)]


def test_a_dry_run_of_a_race_writes_nothing(launch, write, tmp_path):
    printed = launch("benchmark", write(), "--dry-run", "only=[mean]").stdout
    lines = [line for line in printed.splitlines() if "without embeddings" in line]
    assert [line.partition(":")[0] for line in lines] == ["stock", "ours", "mean"]
    assert "mean: DeceroEncoderForMaskedLM" in printed
    assert "validation: 5 rows of 29 tokens" in printed
    assert not (tmp_path / "run").exists()


def test_a_failed_candidate_does_not_end_the_race(launch, write, settings, here, monkeypatch):
    settings["seeds"] = [0]
    follow = racing.Racer.follow
    monkeypatch.setattr(
        racing.Racer, "follow", lambda self, ask: {"error": "it broke"} if self.args[1] == "mean" else follow(self, ask)
    )
    record = launch("benchmark", write(), "only=[mean]").stdout
    assert "| mean | failed |" in record
    assert "mean: it broke" in record


@pytest.mark.slow
def test_a_race_runs_each_side_in_a_process(launch, write, settings, tmp_path):
    settings["seeds"] = [3]
    settings["ours"]["training"]["mixed_precision"] = "bf16"  # of ours alone
    settings["candidates"] = {"broken": {"optim.learning_rate": 900.0}}
    settings["stock_variants"] = {}
    launch("benchmark", write(), launcher=())
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert next(run for run in record["runs"] if run["name"] == "ours")["reached"]
    assert record["reference_step_s"] > 0


SIZES = {
    "vocab_size": 113,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 41,
}
PAIRS: dict[
    str, tuple[Any, str, str, dict[str, Any]]
] = {  # recipe -> class, preset of ours, family of stock, overrides
    "pretrain_mlm": (AutoModelForMaskedLM, "bert_base", "bert", {}),
    "pretrain_causal_lm": (AutoModelForCausalLM, "gpt2", "gpt2", {"bos_token_id": 0, "eos_token_id": 0}),
    "pretrain_seq2seq": (AutoModelForSeq2SeqLM, "t5_small", "t5", {"head_dim": 12}),
}


@pytest.mark.parametrize("recipe", PAIRS)
def test_equal_weights_have_one_validation_loss(recipe, settings, sentinels, trained_tokenizer):
    """Our loss over scored positions only is the loss that the stock class computes itself, on either side."""
    auto, preset, family, overrides = PAIRS[recipe]
    settings["recipe"] = recipe
    section = RaceSection.model_validate(settings)
    tokenizer = load_tokenizer(str(sentinels if family == "t5" else trained_tokenizer))
    set_seed(2)
    ours = auto.from_config(read_preset(f"configs/model/{preset}.yaml", SIZES | overrides | {"initializer_range": 0.3}))
    stock = to_stock(ours.eval(), family).eval()
    rows = validation_rows(section, tokenizer)
    objective = validation_objective(section, tokenizer, ours)
    losses = [Judge(model, objective, rows, CPU, lambda found: True).loss(model) for model in (ours, stock)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert type(stock) is not type(ours)

    batch = objective.collate([row | {"epoch": 3, "index": i} for i, row in enumerate(rows)])
    read = dict(batch)
    if recipe == "pretrain_causal_lm":
        read["labels"] = batch["input_ids"]  # the stock class shifts them
    with torch.no_grad():
        assert float(stock(**read).loss) == pytest.approx(losses[1], abs=1e-5)


def test_the_clock_stands_still_while_a_model_is_scored(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(judge.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Judge, "loss", lambda self, model: now.__setitem__(0, now[0] + 50) or 3.5)
    seen = []

    def ask(found):
        now[0] += 7
        seen.append(found)
        return len(seen) < 2

    model: Any = nn.Linear(1, 1)
    nothing: Any = None
    clock = Judge(model, nothing, nothing, CPU, ask)
    now[0] = 110.0
    clock.start()
    now[0] += 2
    assert clock(model, 1, 10) == 3.5
    now[0] += 4
    with pytest.raises(Stopped):
        clock(model, 2, 20)
    assert [each["seconds"] for each in seen] == [2.0, 6.0]


def test_the_mean_of_the_last_weights_is_scored(monkeypatch):
    scored = []

    def mean_loss(accelerator, model, *rest):
        scored.append(model.weight.item())
        return {"loss": 0.0}

    monkeypatch.setattr(judge, "mean_loss", mean_loss)
    model: Any = nn.Linear(1, 1, bias=False)
    nothing: Any = None
    clock = Judge(model, nothing, nothing, CPU, lambda found: True, average=2)
    for step, weight in enumerate((1.0, 3.0, 7.0)):
        with torch.no_grad():
            model.weight.fill_(weight)
        clock(model, step, 0)
    assert scored == [1.0, 2.0, 5.0]
    assert model.weight.item() == 7.0


def test_rows_of_stock_are_those_of_the_examples(trained_tokenizer, texts):
    tokenizer, data = load_tokenizer(str(trained_tokenizer)), Dataset.from_dict({"text": [*texts, "", "  "]})
    ids = list(chain.from_iterable(tokenizer(texts)["input_ids"]))
    rows = blocks(data, tokenizer, 13, "text")
    assert rows["input_ids"][:] == [ids[i : i + 13] for i in range(0, len(ids) - 12, 13)]
    special = tokenizer.all_special_ids
    assert rows[1]["special_tokens_mask"] == [int(i in special) for i in rows[1]["input_ids"]]
    padded = blocks(data, tokenizer, 13, "text", "padded")
    assert padded["input_ids"][:] == tokenizer(texts, truncation=True, max_length=13)["input_ids"]
    with pytest.raises(UserError, match="does not fill one row of 900 tokens"):
        blocks(data.select(range(3)), tokenizer, 900, "text")


def test_the_stock_loop_is_the_loop_of_the_example(tiny_model):
    """Compare with the update written out: AdamW without decay of biases, linear schedule, no clipping."""
    rows = Dataset.from_dict({"input_ids": [[number + 5] * 7 for number in range(6)]})

    def collate(examples):
        ids = torch.tensor(np.stack([row["input_ids"] for row in examples]))
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    recipe = StockRecipe(
        model=ModelSection(config="any"), max_train_steps=3, per_device_train_batch_size=2, learning_rate=0.05,
        weight_decay=0.3, eval_steps=2,
    )  # fmt: skip
    trained, expected, seen = tiny_model(), tiny_model(), []
    train_stock(recipe, trained, rows, collate, 11, lambda model, step, tokens: seen.append((step, tokens)))
    assert seen == [(2, 28), (3, 42)]

    set_seed(11)
    order = torch.randperm(6)
    named = dict(expected.named_parameters())
    decayed = [p for name, p in named.items() if "bias" not in name]
    plain = [p for name, p in named.items() if "bias" in name]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}])
    for step in range(3):
        ids = torch.tensor(rows[order[2 * step : 2 * step + 2].tolist()]["input_ids"])
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 3)
        optimizer.zero_grad()
        expected(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for name, weight in trained.named_parameters():
        assert torch.allclose(weight, named[name], atol=1e-6), name


def record(name, seed, steps, reached=True):
    return {
        "name": name, "seed": seed, "reached": None if name == "stock" else reached, "loss": 5.0, "seconds": 2 * steps,
        "reference_steps": steps, "tokens": 10 * steps, "step": 7, "flops_per_token": 3,
    }  # fmt: skip


def found_of(settings, times):
    section = RaceSection.model_validate(
        settings | {"candidates": {n: {} for n in times if n not in ("stock", "ours")}}
    )
    records = [
        record(name, i, steps or 99, steps is not None) for name, row in times.items() for i, steps in enumerate(row)
    ]
    return section, summary(section, list(times), records, 5.0)


def test_a_candidate_is_kept_when_its_slowest_seed_beats_ours(settings):
    times = {"stock": [80, 90, 130], "ours": [10, 11, 12], "a": [8, 8, 9], "b": [8, 8, 11], "c": [2, 2, None]}
    section, found = found_of(settings | {"at_least": 9.0}, times)
    assert {name: each["kept"] for name, each in found.items()} == {
        "stock": None, "ours": None, "a": True, "b": False, "c": False
    }  # fmt: skip
    assert found["ours"]["times_as_fast"] == pytest.approx({"mean": 100 / 11, "least": 80 / 12, "most": 13.0})
    assert found["c"]["times_as_fast"] is None
    table = race_table(section, found, 5.0)
    assert "9.09 [6.67, 13.00] (✓ ≥ 9)" in table
    assert "| c | 2 of 3 | 5.000 | – |" in table
    line = record_line(section, found, "0123456789-dirty")
    assert "`0123456` dirty" in line
    assert line.endswith("| 200 [160, 260] | 16.7 [16.0, 18.0] | 12.0 [8.9, 16.2] | a |")


def test_two_seeds_decide_nothing(settings):
    section, found = found_of(settings, {"stock": [80, 120], "ours": [10, 12], "a": [8, 9]})
    assert found["a"]["kept"] is None
    assert "| 2 seeds |" in race_table(section, found, 5.0)
    assert record_line(section, found, None).endswith("| ours |")


def test_nobody_wins_who_does_not_reach_the_loss(settings):
    section, found = found_of(settings, {"stock": [80, 90, 120], "ours": [10, 11, None], "a": [8, 8, 9]})
    assert found["a"]["kept"]  # ours did not reach it at all
    assert record_line(section, found, None).endswith("| a |")
    section, found = found_of(settings, {"stock": [80, 120, 90], "ours": [None] * 3, "a": [8, 8, None]})
    assert "no run reached the loss of stock" in record_line(section, found, None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optim.learning_ratee": 1}, "race.candidates.x: unknown setting optim.learning_ratee; did you mean"),
        ({"tokenizer.name_or_path": "y"}, "x.tokenizer.name_or_path: may not differ from the stock recipe"),
        ({"data.max_rows": 5}, "race.candidates.x.data.max_rows: may not differ from the stock recipe"),
        ({"training.num_train_epochs": 1}, "x.training.num_train_epochs: a race has a planned number of steps"),
        ({"training": {"average_last": 3}}, "training.average_last: in a race, save_steps must be eval_steps"),
        ({"training.eval_steps.x": 3}, "race.candidates.x.training.eval_steps.x: eval_steps is a single value"),
    ],
)
def test_a_mistake_in_a_candidate_is_one_line(settings, changes, line):
    section = RaceSection.model_validate(settings | {"candidates": {"x": changes}})
    with pytest.raises(UserError, match=re.escape(line)):
        section.planned_steps("x")


@pytest.mark.parametrize("path", sorted(Path("configs/benchmark").glob("race*.yaml")), ids=lambda path: path.stem)
def test_every_candidate_of_our_races_can_run(path):
    section = Benchmark.load(str(path)).race
    assert section is not None
    for name in section.names:
        assert section.planned_steps(name) >= 100


def test_a_mistake_in_a_recipe_is_one_line(settings):
    changed = {"ours": {"optim": {}}, "stock_variants": {"x": {"lr": 1}}}
    section = RaceSection.model_validate(settings | changed)
    with pytest.raises(UserError, match=r"race\.ours\.training: give max_train_steps and eval_steps"):
        section.planned_steps("ours")
    with pytest.raises(UserError, match=r"race\.stock_variants\.x: unknown setting lr"):
        section.planned_steps("x")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"race": None}, "give exactly one of works, race and scale"),
        ({"race": {"seeds": [1, 1]}}, "race.seeds: a value appears twice"),
        ({"race": {"candidates": {"ours": {}}}}, "race: ours cannot be the name of a candidate"),
        ({"race": {"candidates": {"a/b": {}}}}, "race: a/b cannot be the name of a candidate"),
        ({"race": {"stock": {"model": {"name_or_path": "x"}, "max_train_steps": 1}}}, "begin with random weights"),
        ({"profile": {}}, "profile looks into the steps of works, not of a race"),
        ({"only": ["hopeles"]}, "only: unknown candidate hopeles; did you mean hopeless"),
    ],
)
def test_a_race_that_cannot_be_held_is_one_line(settings, change, line):
    whole = {"output": "x", "race": settings}
    race_change = change.get("race", {})
    whole |= change | {"race": None if race_change is None else settings | race_change}
    with pytest.raises(UserError, match=line):
        Benchmark.parse(whole, "race.yaml", set()).racing()


def test_a_larger_model_than_stock_is_refused(launch, write, settings, tmp_path):
    settings["candidates"] = {"wide": {"model.overrides.intermediate_size": 300}}
    done = launch("benchmark", write(), expect=2)
    assert "error: race.candidates.wide: " in done.stderr
    assert "is between models of one size" in done.stderr
    assert not (tmp_path / "run").exists()
