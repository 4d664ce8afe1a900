"""FSDP2: a sharded run equals one process, and its checkpoints resume with any other sharding."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tests.training.on_processes import study
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from decero.errors import UserError
from decero.training.checkpoint import damage, load_weights
from decero.training.sharded_safetensors import ShardedTensors, local_pieces
from decero.training.sharding import layers_of, sharding_requested

pytestmark = pytest.mark.long

SGD = {"name": "sgd", "learning_rate": 0.5}  # Adam divides by small gradients, which enlarges rounding errors
STEADY = {"optim": SGD | {"schedule": "constant"}}
KINDS = ("mlm", "causal", "seq2seq", "bert", "classify", "adapter")
LOSS, WEIGHTS = 1e-5, 1e-5  # measured: docs/experiments/scaling.md


@pytest.fixture(scope="module")
def launched(server, tokenizer_folder):
    """Run cases on several processes over gloo; return how they ended."""

    def start(cases, folder, processes=2):
        folder.mkdir(exist_ok=True)
        (folder / "cases.json").write_text(json.dumps(cases))
        words = folder / "cases.json", tokenizer_folder, folder
        done = server.run("tests.training.on_processes:main", words, ranks=processes, limit=900)
        assert done.code == 0, done.err[-5000:]
        return done

    return start


@pytest.fixture(scope="module")
def alone(tokenizer_folder):
    """Run cases in this process."""

    def start(cases, folder):
        folder.mkdir(exist_ok=True)
        study(cases, tokenizer_folder, str(folder), Accelerator(cpu=True))

    return start


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def assert_same_run(one, other, loss=LOSS, weights=WEIGHTS):
    """Compare the losses of common steps, the evaluations and the final weights."""
    ours, theirs = results_of(one), results_of(other)
    steps = min(len(ours["loss"]), len(theirs["loss"]))
    assert steps
    for name in ("loss", "grad_norm"):
        assert np.abs(np.subtract(ours[name][-steps:], theirs[name][-steps:])).max() <= loss, name
    theirs_at = {row["step"]: row for row in theirs["evaluated"]}  # a part of a run evaluates at its end, too
    common = [row for row in ours["evaluated"] if row["step"] in theirs_at]
    assert common or not ours["evaluated"]
    for row in common:
        assert row == pytest.approx(theirs_at[row["step"]], abs=loss)
    assert ours.get("written") == theirs.get("written")
    assert (ours["class"], ours["record"]["num_parameters"]) == (theirs["class"], theirs["record"]["num_parameters"])
    ends = load_file(one / "end.safetensors"), load_file(other / "end.safetensors")
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=weights, msg=lambda m, n=name: f"{n}: {m}")


BEST = {"save_steps": 2, "save_total_limit": 1, "metric_for_best_model": "eval_loss", "eval_steps": 2}
STOPPED = {"name": "stopped", "kind": "mlm", "sharded": True, "training": {"save_steps": 3, "max_train_steps": 3}}
STOPPED |= STEADY
DROPS = {"kind": "mlm", "sharded": True, "dropout": 0.1, "optim": {"schedule": "constant"}}


def larger(cases):
    """Let the cases add up two micro-batches on each of two processes, not three."""
    return [case | {"training": {"per_device_batch_size": 3} | case.get("training", {})} for case in cases]


@pytest.fixture(scope="module")
def two(launched, tmp_path_factory):
    """Run the cases sharded on two processes; return their folder."""
    folder = tmp_path_factory.mktemp("two")
    cases = [
        {"name": "mlm", "kind": "mlm", "sharded": True} | STEADY,
        {"name": "seq2seq", "kind": "seq2seq", "sharded": True, "training": BEST} | STEADY,
        {"name": "mean", "kind": "mlm", "sharded": True, "training": {"save_steps": 2, "average_last": 2}} | STEADY,
        {"name": "adapter", "kind": "adapter", "sharded": True, "training": BEST} | STEADY,
        STOPPED,
        DROPS | {"name": "undisturbed", "training": {"save_steps": 3}},
        DROPS | {"name": "cut", "training": {"save_steps": 3, "max_train_steps": 3}},
        DROPS | {"name": "resumed", "of": "cut", "resume": True, "training": {"save_steps": 3}},
    ]
    launched(larger(cases), folder)
    return folder


@pytest.fixture(scope="module")
def one(alone, tmp_path_factory):
    """Run the same cases on one process; return their folder."""
    folder = tmp_path_factory.mktemp("one")
    cases = [
        {"name": "mlm", "kind": "mlm"} | STEADY,
        {"name": "seq2seq", "kind": "seq2seq", "training": BEST} | STEADY,
        {"name": "mean", "kind": "mlm", "training": {"save_steps": 2, "average_last": 2}} | STEADY,
        {"name": "adapter", "kind": "adapter", "training": BEST} | STEADY,
    ]
    alone(larger(cases), folder)
    return folder


def test_two_sharded_processes_equal_one_process(two, one):
    """Compare loss, gradient norm, evaluation with unequal shares, and final weights."""
    assert_same_run(one / "mlm", two / "mlm")
    assert len(results_of(two / "mlm")["evaluated"]) == 2


def test_the_best_sharded_model_generates_as_on_one_process(two, one):
    assert_same_run(one / "seq2seq", two / "seq2seq")
    assert results_of(two / "seq2seq")["best"] == pytest.approx(results_of(one / "seq2seq")["best"], abs=LOSS)
    assert any(results_of(two / "seq2seq")["written"])


def test_the_mean_of_sharded_checkpoints_is_that_of_one_process(two, one):
    assert_same_run(one / "mean", two / "mean")
    ends = [load_file(two / name / "end.safetensors") for name in ("mean", "mlm")]
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_sharded_adapter_equals_that_of_one_process(two, one):
    """Only the adapter is in the shards of the checkpoint."""
    assert_same_run(one / "adapter", two / "adapter")
    with ShardedTensors(next((two / "adapter" / "checkpoints").glob("step-*")), "model") as stored:
        assert stored.found
        assert all(".lora_" in name or name.startswith("classifier.modules_to_save") for name in stored.found)
        assert "decero_base" in stored.header


def test_the_same_number_of_processes_resumes_exactly(two):
    assert_same_run(two / "undisturbed", two / "resumed", loss=0, weights=0)
    assert (two / "cut" / "checkpoints" / "step-00000006" / "model-1-of-2.safetensors").is_file()


def test_one_process_resumes_a_run_of_two_sharded_ones(two, one, alone, tmp_path, capsys):
    shutil.copytree(two / "stopped", tmp_path / "stopped")
    rest = {"name": "end", "of": "stopped", "resume": True, "kind": "mlm", "training": {"save_steps": 6}}
    alone([rest | STEADY], tmp_path)
    assert_same_run(one / "mlm", tmp_path / "end")
    assert "at step 3 of 6" in capsys.readouterr().out
    files = {p.name for p in (tmp_path / "stopped" / "checkpoints" / "step-00000006").iterdir()}
    assert {"model.safetensors", "optimizer.safetensors"} <= files


def test_each_process_writes_its_rows_and_tied_weights_once(two):
    """No pickle, no weight twice, and the shards together are the full tensors."""
    path = two / "stopped" / "checkpoints" / "step-00000003"
    names = {p.name for p in path.iterdir()}
    assert {f"{kind}-{rank}-of-2.safetensors" for kind in ("model", "optimizer") for rank in (0, 1)} < names
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    parts = [load_file(path / f"model-{rank}-of-2.safetensors") for rank in (0, 1)]
    end = load_file(two / "stopped" / "end.safetensors")
    for name, whole in end.items():
        assert torch.equal(torch.cat([part[name] for part in parts if name in part]), whole), name
    sizes = [sum(t.numel() for t in part.values()) for part in parts]
    assert sum(sizes) == sum(t.numel() for t in end.values())
    assert max(sizes) < 0.53 * sum(sizes)


def test_torch_reads_a_sharded_checkpoint(two):
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    path, end = two / "stopped" / "checkpoints" / "step-00000003", load_file(two / "stopped" / "end.safetensors")
    found = {name: torch.zeros_like(value) for name, value in end.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(found[name], end[name]) for name in end)


@pytest.mark.parametrize("name", ["model-1-of-2.safetensors", "optimizer-0-of-2.safetensors"])
def test_an_incomplete_or_missing_shard_is_reported(two, tmp_path, name):
    path = tmp_path / "step-00000003"
    shutil.copytree(two / "stopped" / "checkpoints" / path.name, path)
    assert damage(path) is None
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    assert damage(path) == f"{name} is incomplete"
    (path / name).unlink()
    assert damage(path) == f"{name} is missing"


class FakeShard:
    """A shard on one process, like torch's DTensor but without other processes."""

    def __init__(self, tensor, rank, size):
        self.tensor, self.rank, self.processes, self.shape = tensor, rank, size, tensor.shape
        self.device_mesh, self.dim = self, tensor.dim

    def size(self):
        return self.processes

    def get_local_rank(self):
        return self.rank

    def to_local(self):
        parts = self.tensor.chunk(self.processes)
        return parts[self.rank] if self.rank < len(parts) else self.tensor[:0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_any_sharding_reads_any_other_sharding(tmp_path, processes):
    """Five rows, one row and a scalar, also with fewer rows than processes."""
    tensors = {"five": torch.arange(15.0).reshape(5, 3), "one": torch.ones(1), "step": torch.tensor(4.0)}
    for rank in range(processes):
        shards = {n: FakeShard(t, rank, processes) if t.dim() else t for n, t in tensors.items()}
        part, header = local_pieces(shards, rank == 0)
        save_file(part, tmp_path / f"optimizer-{rank}-of-{processes}.safetensors", metadata=header)
    with ShardedTensors(tmp_path, "optimizer") as stored:
        assert stored.found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert stored.shape(name) == [*tensor.shape]
            assert torch.equal(stored.whole(name), tensor)
        for others in (1, 2, 3, 5, 6):
            again = [FakeShard(tensors["five"], rank, others) for rank in range(others)]
            assert all(torch.equal(stored.like("five", each), each.to_local()) for each in again)


def test_a_checkpoint_of_another_shape_is_refused(two, tiny_model):
    path = two / "stopped" / "checkpoints" / "step-00000003"
    with pytest.raises(UserError, match=r"does not match the model of this run: tensor .*\(and \d+ more\)"):
        load_weights(path, tiny_model(hidden_size=26))


class SharedWeight(nn.Module):
    """A list of layers, one of which shares a weight with a module outside."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.head = nn.Linear(3, 3)
        self.head.weight = self.layers[1].weight


def test_layers_are_found_except_one_with_a_shared_weight(tiny_model):
    assert len(layers_of(tiny_model())) == 2
    bert = BertForMaskedLM(BertConfig(hidden_size=22, num_hidden_layers=3, num_attention_heads=1, intermediate_size=7))
    assert layers_of(bert) == list(bert.bert.encoder.layer)
    model = SharedWeight()
    assert layers_of(model) == [model.layers[0], model.layers[2]]


def test_fsdp_options_of_the_launcher_are_obeyed_or_refused(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not sharding_requested()
    for variables, line in (
        ({"FSDP_VERSION": "1"}, "FSDP 1 is not supported; set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "training.gradient_checkpointing=true"),
    ):
        with monkeypatch.context() as patched:
            for name, value in ({"ACCELERATE_USE_FSDP": "true"} | variables).items():
                patched.setenv(name, value)
            with pytest.raises(UserError, match=line):
                sharding_requested()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding_requested()
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_kind_of_model_trains_alike_on_any_topology(launched, alone, tmp_path, processes):
    """Three decero models and two stock BERT models on several processes, sharded or not, against one."""
    cases = [{"name": kind, "kind": kind} | STEADY for kind in KINDS]
    alone(cases, tmp_path / "one")
    more = [{"name": "checkpointed", "kind": "bert", "training": {"gradient_checkpointing": True}} | STEADY]
    shards = [case | {"name": f"{case['name']} sharded", "sharded": True} for case in [*cases, *more]]
    launched([*cases, *shards], tmp_path / "several", processes)
    for kind in KINDS:
        for name in (kind, f"{kind} sharded"):
            assert_same_run(tmp_path / "one" / kind, tmp_path / "several" / name)
    assert_same_run(tmp_path / "one" / "bert", tmp_path / "several" / "checkpointed sharded")


@pytest.mark.slow
def test_a_run_resumes_on_four_then_two_then_one_process(launched, alone, tmp_path, capsys):
    """Steps 1-2 sharded on 4, 3-4 sharded on 2, 5 on 2 without shards, 6 on one: equals one process."""
    run = {"of": "run", "kind": "mlm", "resume": True} | STEADY
    alone([{"name": "whole", "kind": "mlm"} | STEADY], tmp_path)
    parts = {"a": (4, True, 2), "b": (2, True, 4), "c": (2, False, 5), "d": (1, False, 6)}
    before = 0
    for name, (processes, sharded, last) in parts.items():
        case = run | {"name": name, "sharded": sharded, "training": {"save_steps": 1, "max_train_steps": last}}
        if processes > 1:
            output = launched([case], tmp_path, processes).out
        else:
            alone([case], tmp_path)
            output = capsys.readouterr().out
        assert name == "a" or f"at step {before} of {last}" in output
        before = last
    assert_same_run(tmp_path / "whole", tmp_path / "d")


@pytest.mark.slow
def test_a_run_without_shards_resumes_with_shards(launched, alone, tmp_path):
    alone([{"name": "whole", "kind": "bert"} | STEADY], tmp_path)
    half = {"of": "run", "kind": "bert", "training": {"save_steps": 3, "max_train_steps": 3}} | STEADY
    launched([half | {"name": "half"}], tmp_path)
    rest = {"of": "run", "name": "rest", "kind": "bert", "sharded": True, "resume": True} | STEADY
    assert "at step 3 of 6" in launched([rest], tmp_path, 4).out
    assert_same_run(tmp_path / "whole", tmp_path / "rest")
