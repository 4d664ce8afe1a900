"""Where a step's time goes: every operator has a kind, and the shares are those of the whole step."""

import json
from typing import Any

import pytest
import torch

from decero.benchmark import operators
from decero.benchmark.operators import EVERY, kind_of, profile_table, shares_of, stacked

MLM = {
    "kind": "mlm", "stock": "bert", "batch_size": 5, "length": 23, "rounds": 3,
    "model": {
        "config": "configs/model/bert_base.yaml",
        "overrides": {"vocab_size": 211, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
                      "intermediate_size": 41},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention kernels"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::_log_softmax", "loss"),
        ("aten::native_layer_norm_backward", "norms"),
        ("aten::native_dropout", "dropout"),
        ("aten::random_", "dropout"),
        ("aten::gelu_backward", "activations"),
        ("aten::embedding_dense_backward", "embeddings and their gradient"),
        ("autograd::engine::evaluate_function: EmbeddingBackward0", "embeddings and their gradient"),
        ("_LinearCrossEntropy", "loss"),
        ("aten::index_select", "selecting"),
        ("aten::copy_", "copies and casts"),
        ("aten::masked_fill_", "copies and casts"),
        ("aten::add_", "sums, means, products"),
        ("aten::mul", "sums, means, products"),
        ("aten::view", "Python and other"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "Python and other"),
    ],
)
def test_an_operator_has_its_kind(operator, kind):
    assert kind_of(operator) == kind


class Unit:
    """Multiply matrices, then update one of them."""

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.randn(400, 400))
        self.optimizer = torch.optim.AdamW([self.weight], fused=True)

    def make(self):
        return [torch.randn(400, 400)]

    def step(self, batch):
        (batch @ self.weight).sum().backward()
        self.optimizer.step()


def test_shares_add_up_and_the_optimizer_is_a_part_of_its_own():
    unit: Any = Unit()
    shares, slowest = shares_of(unit, 3, torch.device("cpu"))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares) == list(EVERY)
    assert shares["matrix products"] > shares["softmax"] == 0
    assert shares["optimizer"] > 0
    assert shares["making batches"] > 0  # random numbers for the matrices, not dropout
    assert shares["dropout"] == 0
    assert all(share > 0.001 for share in slowest.values())


def test_the_table_gives_the_share_of_the_peak():
    row = {
        "seconds": 2.0, "flops": 1e9, "dtype": "bf16", "of_peak": 0.25, "products_of_peak": 0.5,
        "shares": dict.fromkeys(EVERY, 0.0) | {"matrix products": 0.5, "softmax": 0.5},
    }  # fmt: skip
    table = profile_table({"a, ours": row}, {"fp32": 1e9, "bf16": 2e9})
    for line in ("| time of a step | 2,000 ms |", "| **of the peak** | **25%** |", "| products alone | 50% |",
                 "| softmax | 50.0% |"):  # fmt: skip
        assert line in table
    assert "dropout" not in table
    assert stacked({"a, ours": row}).axes


def test_a_profile_as_a_user_runs_it(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(operators, "matmul_peak", lambda device: {"fp32": 1e11, "bf16": 2e11})
    monkeypatch.setattr(operators, "render", lambda figure, kind: kind.encode())
    path, folder = tmp_path / "profile.yaml", tmp_path / "run"
    settings = {"output": str(folder), "works": {"mlm": MLM}, "profile": {"steps": 1}, "tracking": {"trackers": []}}
    path.write_text(json.dumps(settings))
    printed = launch("benchmark", path).stdout
    record = json.loads((folder / "result.json").read_text())
    assert record["table"] in printed
    assert {"profile.md", "profile.png", "profile.svg"} <= {each.name for each in folder.iterdir()}
    assert list(record["rows"]) == ["mlm, ours", "mlm, ours fp32"]
    for name, row in record["rows"].items():
        assert row["dtype"] == ("fp32" if "fp32" in name else "bf16")
        assert row["of_peak"] == pytest.approx(row["flops"] / row["seconds"] / record["matmul_peak"][row["dtype"]])
        assert row["shares"]["optimizer"] > 0
        assert row["shares"]["clipping gradients"] > 0
        assert ("matmul" in row["says"][0]) is (row["dtype"] == "bf16")  # the kernel of that precision
    (folder / "result.json").unlink()
    monkeypatch.setattr(operators, "profiled", None)
    assert launch("benchmark", path, "--resume").stdout.count("of the peak") == 1


def test_decoding_is_no_step_to_profile(launch, tmp_path):
    path = tmp_path / "profile.yaml"
    works = {"a": MLM | {"kind": "decode"}}
    path.write_text(json.dumps({"output": str(tmp_path / "run"), "works": works, "profile": {}}))
    assert "remove works.a, which decodes" in launch("benchmark", path, expect=2).stderr
