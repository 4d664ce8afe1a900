"""The benchmark as a user runs it, and its fairness: equal losses, equal texts, equal counting."""

import json
import os
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from decero.benchmark.arms import ARMS, build_arms, check_equal
from decero.benchmark.batches import describe, make_texts, padded_batches
from decero.benchmark.measure import interleaved, matmul_peak, paired_ratios
from decero.benchmark.peak_memory import peak_of_step
from decero.benchmark.process import memory_of, processes
from decero.benchmark.reading import main as reading
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Workload
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 211,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 41,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
VECTORS = 0.05  # biases and norms, which count as parameters and are no matrix product
FAMILIES = {  # what a kind is tried with: preset, family, other overrides
    "mlm": ("bert_base", "bert", {}),
    "causal": ("gpt2", "gpt2", ENDS),
    "seq2seq": ("t5_small", "t5", {"head_dim": 12}),
    "classification": ("minilm_l6", "bert", {}),
}


@pytest.fixture(autouse=True)
def _one_core():
    """Use one thread: on a busy machine these tiny steps would mostly wait for the second core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def settings(kind, **changes):
    preset, family, overrides = FAMILIES[kind]
    model = {"config": f"configs/model/{preset}.yaml", "overrides": SIZES | overrides}
    return {"kind": kind, "model": model, "stock": family, "batch_size": 5, "length": 23, "rounds": 3} | changes


def prepared(kind, **changes):
    work = Workload.model_validate(settings(kind, **changes))
    ours, stock = build_pair(kind, work, seed=3)
    return work, (ours, stock), make_texts(kind, work, ours.config, seed=3)


def plain_losses(name, arms):
    """Return the losses of all arms on the same batch, which `check_equal` found to agree."""
    losses = {arm: each.plain_loss() for arm, each in arms.items()}
    check_equal(name, losses, CPU)
    return losses


@pytest.fixture
def write(tmp_path):
    """Write a configuration file with these works (JSON is valid YAML)."""

    def write(works, **more):
        path = tmp_path / "benchmark.yaml"
        content = {"output": str(tmp_path / "run"), "works": works, "tracking": {"trackers": []}} | more
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.mark.slow
def test_a_benchmark_writes_a_record_a_table_and_a_figure(launch, write, tmp_path):
    goals = {"at_least": {"stock fp32": 0.001, "tuned": 1000.0}, "memory_at_most": 9.0}
    works = {"mlm": settings("mlm", fill=0.5, batches=2, **goals)}
    printed = launch("benchmark", write(works)).stdout
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= {"result.json", "benchmark.md", "speed.png", "speed.svg"}
    record = json.loads((folder / "result.json").read_text())
    assert record["table"] in printed
    assert record["table"] in (folder / "benchmark.md").read_text()
    assert record["matmul_peak"].keys() == {"fp32", "bf16"}
    assert record["works"].keys() == works.keys()
    for name, found in record["works"].items():
        assert list(found["arms"]) == list(ARMS) == list(found["parameters"])
        assert found["flops"] > 0
        assert 0 < found["fill"] < 1
        for arm, measured in found["arms"].items():
            assert len(measured["rounds"]) == 3
            assert measured["seconds"]["quartiles"][0] <= measured["seconds"]["median"]
            assert measured["tokens_per_s"] == pytest.approx(found["useful_tokens"] / measured["seconds"]["median"])
            assert 0 < measured["peak_fraction"] < 1
            assert measured["memory"]["step_bytes"] > 0
            assert found["loss"][arm] == pytest.approx(found["loss"]["ours"], rel=1e-5)
            kept = "allocator: freed memory is kept" in found["says"][arm]
            assert kept is not arm.startswith("stock")  # as a run of ours does, and no example of transformers
        for arm in ("stock fp32", "stock bf16", "tuned"):
            expected = paired_ratios(found["arms"][arm]["rounds"], found["arms"]["ours"]["rounds"])
            assert found["ratios"][arm] == expected
            assert record["metric"][f"{name}, over {arm}"] == expected["median"]
    assert record["works"]["mlm"]["reached"] == {"stock fp32": True, "tuned": False, "memory": True}
    assert "✗ ≥ 1000" in record["table"]
    assert record["table"] in launch("benchmark", tmp_path / "benchmark.yaml", "--resume").stdout


@pytest.mark.slow
def test_a_stopped_benchmark_resumes_after_the_last_work(launch, write, tmp_path):
    small = {"batch_size": 2, "rounds": 1, "tricks": False}
    both = {"mlm": settings("mlm", **small), "causal": settings("causal", **small)}
    path, folder = write(both, memory=False), tmp_path / "run"
    launch("benchmark", path)
    first = json.loads((folder / "result.json").read_text())["works"]
    for gone in ("result.json", "works/causal.json"):
        (folder / gone).unlink()
    assert "--resume" in launch("benchmark", path, expect=2).stderr
    launch("benchmark", path, "--resume")
    again = json.loads((folder / "result.json").read_text())["works"]
    assert again["mlm"] == first["mlm"]
    assert again["causal"]["arms"]["ours"]["rounds"] != first["causal"]["arms"]["ours"]["rounds"]
    assert again["causal"]["loss"] == first["causal"]["loss"]


@pytest.mark.long
@pytest.mark.slow
def test_a_refused_first_work_leaves_the_folder_free(launch, write, tmp_path, monkeypatch):
    path = write({"mlm": settings("mlm", rounds=1)})
    monkeypatch.setattr("decero.benchmark.process.serve", os._exit)  # which wants other arguments
    done = launch("benchmark", path, expect=2)
    assert "error: works.mlm: stock fp32: its process ended with 1" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_dead_arm_is_one_line_and_keeps_measured_times():
    work = Workload.model_validate(settings("mlm", tricks=False))
    with processes("mlm", work, CPU, seed=3) as (arms, facts):
        assert facts.keys() == arms.keys() == {"stock fp32", "ours"}
        assert arms["ours"]() > 0
        arms["ours"].child.kill()
        with pytest.raises(UserError, match=r"works\.mlm: ours: its process ended with -9, probably out of memory"):
            arms["ours"]()
        assert list(memory_of(arms)) == ["stock fp32"]
    assert all(arm.child.exitcode is not None for arm in arms.values())


def test_a_dry_run_counts_parameters_and_writes_nothing(launch, write, tmp_path):
    printed = launch(
        "benchmark", write({"a": settings("causal"), "b": settings("seq2seq")}), "only=[b]", "--dry-run"
    ).stdout
    lines = [line.split() for line in printed.splitlines() if line.startswith("    ") and "parameters" in line]
    assert [line[-3] for line in lines] == ["T5ForConditionalGeneration"] * 3 + [
        "DeceroEncoderDecoderForConditionalGeneration"
    ]
    assert len({line[-2] for line in lines}) == 1
    assert "GPT2LMHeadModel" not in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fill", [1.0, 0.5])
@pytest.mark.parametrize("kind", FAMILIES)
def test_all_arms_have_the_same_loss_on_the_same_texts(kind, fill):
    """Stock class, padded rows, mean loss against packed rows and fused loss: equal to 1e-5 in fp32."""
    work, pair, texts = prepared(kind, fill=fill)
    arms = build_arms(work, pair, texts, CPU, seed=3)
    losses = plain_losses(kind, arms)
    assert max(losses.values()) - min(losses.values()) <= 1e-5
    for arm in ("tuned", "ours"):
        assert any("attention stays within each text" in line for line in arms[arm].says)  # packed, not given up
        assert "text_ids" in arms[arm].batches[0]
    assert type(arms["tuned"].model) is type(arms["stock fp32"].model)
    assert type(arms["ours"].model) is not type(arms["tuned"].model)
    if fill < 1:
        places = {name: arm.batches[0]["input_ids"].numel() for name, arm in arms.items()}
        assert places["ours"] == places["tuned"] < places["stock fp32"]


def test_each_arm_trains(tmp_path):
    work, pair, texts = prepared("mlm", fill=0.5)
    arms = build_arms(work, pair, texts, CPU, seed=3)
    before = plain_losses("mlm", arms)
    for arm in arms.values():
        for group in arm.optimizer.param_groups:
            group["lr"] = 1e-2
        for _ in range(3):
            arm()
    assert all(arm.plain_loss() < before[name] - 0.05 for name, arm in arms.items())


def test_arms_with_different_losses_are_refused():
    work, pair, texts = prepared("mlm")
    arms = build_arms(work, pair, texts, CPU, seed=3)
    with torch.no_grad():
        arms["tuned"].model.get_output_embeddings().bias[7:] += 0.01
    with pytest.raises(UserError, match=r"works\.mlm: the losses of the arms differ.*tuned"):
        plain_losses("mlm", arms)


def test_lengths_spread_around_fill_and_follow_the_seed():
    work, (ours, _), texts = prepared("mlm", fill=0.5, length=101, batch_size=400)
    lengths = [len(row) for row in texts["input_ids"]]
    assert sum(lengths) / len(lengths) == pytest.approx(50.5, abs=0.1)
    assert (min(lengths), max(lengths)) == (4, 97)
    assert lengths != sorted(lengths)
    assert ours.config.pad_token_id not in {token for row in texts["input_ids"] for token in row}
    assert make_texts("mlm", work, ours.config, 3)["input_ids"] == texts["input_ids"]
    assert make_texts("mlm", work, ours.config, 4)["input_ids"] != texts["input_ids"]
    full = prepared("mlm")[2]
    assert {len(row) for row in full["input_ids"]} == {23}


def test_stock_rows_are_padded_to_the_longest_or_to_the_length():
    for padding, width in (("longest", 10), ("max_length", 23)):
        work, (ours, _), texts = prepared("classification", fill=0.3, padding=padding)
        assert max(map(len, texts["input_ids"])) == 10
        assert padded_batches(work, texts, ours.config, 3)[0]["input_ids"].shape == (5, width)


def test_texts_of_a_file_are_read_and_too_few_are_refused(corpus, trained_tokenizer):
    files = {"files": f"{corpus}/train.jsonl", "tokenizer": str(trained_tokenizer)}
    work, (ours, _), texts = prepared("classification", texts=files, batch_size=20, batches=3)
    tokenizer = load_tokenizer(str(trained_tokenizer))
    lines = [json.loads(line)["text"] for line in (corpus / "train.jsonl").read_text().splitlines()]
    expected = sorted(tokenizer(lines, truncation=True, max_length=23)["input_ids"])
    assert sorted(texts["input_ids"]) == expected
    assert describe(work, texts, ours, 3)["useful_tokens"] == sum(map(len, expected))
    with pytest.raises(UserError, match="60 texts are fewer than batches x batch_size = 61"):
        prepared("classification", texts=files, batch_size=61)


def test_reading_is_compared_with_the_library_alone(corpus, trained_tokenizer, capsys):
    files, cache = [f"{corpus}/{split}.jsonl" for split in ("train", "test")], datasets.config.HF_DATASETS_CACHE
    reading([str(trained_tokenizer), *files, "--max-length", "13", "--rounds", "2"])
    printed = capsys.readouterr().out
    tokenizer = load_tokenizer(str(trained_tokenizer))
    lines = [json.loads(line)["text"] for file in files for line in Path(file).read_text().splitlines()]
    lengths = [len(ids) for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    rows = [min(11, left) for length in lengths for left in range(length, 1, -11)]  # [CLS] and [SEP] beside them
    size = f" cores, 90 texts, {len(rows)} rows of at most 13, {sum(rows) + 2 * len(rows):,} tokens"
    assert printed.splitlines()[0].endswith(size)
    assert [line.partition(":")[0] for line in printed.splitlines()[1:]] == [
        "tokenizers alone", "tokenised", "tokenised and packed"
    ]  # fmt: skip
    assert cache == datasets.config.HF_DATASETS_CACHE
    with pytest.raises(UserError, match="--rounds 0 must be at least 1"):
        reading([str(trained_tokenizer), *files, "--rounds", "0"])


@pytest.mark.parametrize(("kind", "more"), [("classification", {}), ("mlm", {"mlm_probability": 0.999999})])
def test_useful_flops_exclude_padding_and_unscored_positions(kind, more):
    work, (ours, _), texts = prepared(kind, **more)
    ours.set_attn_implementation("eager")
    batch = padded_batches(work, texts, ours.config, 3)[0]
    with FlopCounterMode(display=False) as counter:
        ours(**batch).loss.backward()
    assert describe(work, texts, ours, 3)["flops"] == pytest.approx(counter.get_total_flops(), rel=VECTORS)


def test_span_corruption_flops_count_each_side_by_its_length():
    work, (ours, _), texts = prepared("seq2seq", batch_size=1)
    ours.set_attn_implementation("eager")
    batch = padded_batches(work, texts, ours.config, 3)[0]
    with FlopCounterMode(display=False) as counter:
        ours(**batch).loss.backward()
    T = batch["labels"].shape[1]
    assert round(2 / 9 * 23) + 1 == T
    unseen = 12 * 36 * 2 * (T * T - T * (T + 1) / 2)  # eager attention also computes what a causal mask hides
    assert describe(work, texts, ours, 3)["flops"] == pytest.approx(counter.get_total_flops() - unseen, rel=VECTORS)


def test_memory_is_the_peak_of_a_step():
    """Logits of all positions against scored ones only. Counted bytes are deterministic."""
    work, pair, texts = prepared(
        "mlm", fill=0.5, model=settings("mlm")["model"] | {"overrides": SIZES | {"vocab_size": 5003}}
    )
    peaks = {name: peak_of_step(arm) for name, arm in build_arms(work, pair, texts, CPU, seed=3).items()}
    weights = sum(p.numel() * p.element_size() for p in pair[0].parameters())
    assert 3 * weights <= peaks["ours"]["held_bytes"] <= 3.01 * weights + 10_000  # and two moments each
    logits = 5 * max(map(len, texts["input_ids"])) * 5003 * 4
    assert peaks["stock fp32"]["step_bytes"] > 2 * logits
    assert peaks["ours"]["step_bytes"] < 0.7 * peaks["stock fp32"]["step_bytes"]


def test_rounds_alternate_direction_and_skip_the_warm_up():
    calls, ticks = [], []
    arms = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "abcd"}
    times = interleaved(arms, rounds=4, warmup=2, seed=1, tick=lambda: ticks.append(1))
    orders = [calls[i : i + 4] for i in range(0, 24, 4)]
    assert len(ticks) == 24
    assert all(sorted(order) == list("abcd") for order in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in (0, 2, 4))
    assert len({tuple(order) for order in orders}) > 2
    assert times == {name: [1.0 + i for i in range(8, 24) if calls[i] == name] for name in "abcd"}


def test_ratios_compare_times_of_the_same_round():
    """A machine that becomes ten times slower halfway does not change the ratios."""
    found = paired_ratios([2.0, 2.2, 20.0, 21.0, 22.0], [1.0, 1.0, 10.0, 10.0, 10.0])
    assert found == {"median": 2.1, "quartiles": [2.0, 2.2], "extremes": [2.0, 2.2]}


def test_the_matmul_peak_is_positive():
    assert all(peak > 0 for peak in matmul_peak(CPU, seconds=0.01).values())


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        ({}, ["only=[mml]"], "only: unknown workload mml; did you mean mlm?"),
        (
            {"stock": "bertt"},
            [],
            "works.mlm: stock bertt: family bertt cannot hold a DeceroEncoder; did you mean bert",
        ),
        ({"stock": "t5"}, [], "works.mlm: stock t5: t5 has no DeceroEncoderForMaskedLM"),
        ({"length": 1000}, [], "works.mlm: length 1000 exceeds the 512 positions"),
        ({}, ["works.mlm.model.overrides.hidden_sise=4"], "unknown field hidden_sise of DeceroEncoderConfig"),
        ({}, ["works.mlm.model.overrides.num_attention_heads=5"], "is not a multiple of num_attention_heads 5"),
        ({"kind": "causal"}, [], "works.mlm: configs/model/bert_base.yaml as causal"),
        ({}, ["works.mlm.batchsize=4"], "unknown setting works.mlm.batchsize; did you mean works.mlm.batch_size?"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_timed(launch, write, tmp_path, change, words, line):
    done = launch("benchmark", write({"mlm": settings("mlm") | change}), *words, expect=2)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["mlm", "seq2seq"])
def test_without_tricks_decero_computes_like_the_stock_class(kind):
    work, pair, texts = prepared(kind, tricks=False, fill=0.6)
    assert work.arms() == ("stock fp32", "ours")
    arms = build_arms(work, pair, texts, CPU, 3, work.arms())
    assert set(plain_losses(kind, arms)) == {"stock fp32", "ours"}
    assert "text_ids" not in arms["ours"].batches[0]
    assert not arms["ours"].bf16
