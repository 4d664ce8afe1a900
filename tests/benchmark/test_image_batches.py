"""The benchmark of pictures: all arms train on the same pixels, and the example's arm has none of our methods."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTForImageClassification

from decero.benchmark import image_batches
from decero.benchmark.arms import ARMS, build_arms, check_equal
from decero.benchmark.batches import describe, make_batches, make_texts
from decero.benchmark.image_batches import example_batches, picture_collator, stored_pictures
from decero.benchmark.peak_memory import peak_of_step
from decero.benchmark.summary import arm_table, line_of, summarise
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Benchmark, Workload
from decero.errors import UserError
from decero.models.modeling_vision import DeceroVisionForImageClassification

CPU = torch.device("cpu")
SIZES = {"image_size": [15, 20], "patch_size": 5, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2}
PEAKS = {"fp32": 1e12, "bf16": 1e12}


def settings(channels=3, **changes):
    overrides = SIZES | {"intermediate_size": 31, "num_channels": channels}
    model = {"config": "configs/model/vit_tiny.yaml", "overrides": overrides}
    return {"kind": "pictures", "model": model, "stock": "vit", "batch_size": 5, "batches": 2, "rounds": 3} | changes


def prepared(**changes):
    work = Workload.model_validate(settings(**changes))
    pair = build_pair("pictures", work, seed=3)
    return work, pair, make_texts("pictures", work, pair[0].config, seed=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_examples_pixels_are_ours(channels):
    work, (ours, _), pictures = prepared(channels=channels)
    rows = stored_pictures(pictures, ours.config)
    wanted = make_batches(work, rows, picture_collator(ours.config, 3))
    found = example_batches(work, pictures, ours.config, 3)
    assert [batch["pixel_values"].shape for batch in found] == [(5, channels, 15, 20)] * 2
    for batch, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(batch["pixel_values"], other["pixel_values"], atol=1e-6, rtol=0)
        assert batch["labels"].tolist() == other["labels"].tolist()
    assert [label for batch in found for label in batch["labels"].tolist()] == list(range(10))
    whole = np.frombuffer(rows[0]["pixels"], np.uint8).reshape(15, 20, channels)
    assert np.abs(ours_pixels(found[0]["pixel_values"][0]) - whole).max() > 20  # cropped, not the picture as it is
    other_seed = example_batches(work, pictures, ours.config, 4)[0]["pixel_values"]
    assert (found[0]["pixel_values"] - other_seed).abs().max() > 0.1


def ours_pixels(values_CYX):
    return ((values_CYX.permute(1, 2, 0).numpy() / 2 + 0.5) * 255).astype(np.int64)


def test_pictures_follow_the_seed_and_are_smooth():
    work, (ours, _), pictures = prepared()
    again, other = (make_texts("pictures", work, ours.config, seed) for seed in (3, 4))
    files = [
        [each["bytes"] for each in rows.with_format("arrow")["image"].to_pylist()] for rows in (pictures, again, other)
    ]
    assert files[0] == files[1]
    assert not set(files[0]) & set(files[2])
    picture = np.asarray(pictures[0]["image"]).astype(int)
    assert picture.std() > 20
    assert np.abs(np.diff(picture, axis=1)).mean() < picture.std()


def test_all_arms_have_one_loss_and_train():
    work, pair, pictures = prepared()
    arms = build_arms(work, pair, pictures, CPU, seed=3)
    assert tuple(arms) == ARMS == work.arms()
    before = {arm: each.plain_loss() for arm, each in arms.items()}
    check_equal("pictures", before, CPU)
    assert {name: type(arm.model) for name, arm in arms.items()} == {
        **dict.fromkeys(ARMS[:3], ViTForImageClassification), "ours": DeceroVisionForImageClassification
    }  # fmt: skip
    for arm in arms.values():
        for group in arm.optimizer.param_groups:
            group["lr"] = 1e-2
        for _ in range(3):
            arm()
    assert all(arm.plain_loss() < before[name] - 0.05 for name, arm in arms.items())


def test_only_the_examples_arms_decode_in_a_step(monkeypatch):
    work, pair, pictures = prepared()
    arms = build_arms(work, pair, pictures, CPU, seed=3)
    calls, decode = [], datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *given, **more: calls.append(1) or decode(*given, **more)
    )
    decoded = {}
    for name, arm in arms.items():
        calls.clear()
        arm.make()
        decoded[name] = len(calls)
    assert decoded == {"stock fp32": 10, "stock bf16": 10, "tuned": 0, "ours": 0}


def test_the_examples_optimizer_is_plain_and_clips_nothing(monkeypatch):
    work, pair, pictures = prepared()
    arms = build_arms(work, pair, pictures, CPU, seed=3)
    fused = {name: bool(arm.optimizer.param_groups[0].get("fused")) for name, arm in arms.items()}
    assert fused == {"stock fp32": False, "stock bf16": False, "tuned": True, "ours": True}
    assert {type(arm.optimizer) for arm in arms.values()} == {torch.optim.AdamW}
    clipped, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clipped.append(given[1]) or clip(*given))
    for name, arm in arms.items():
        clipped.clear()
        arm.step(arm.batches[0])
        assert clipped == ([] if name.startswith("stock") else [1.0])
    assert [arm.bf16 for arm in arms.values()] == [False, True, True, True]


def test_without_tricks_ours_reads_as_the_example_does():
    work, pair, pictures = prepared(tricks=False)
    arms = build_arms(work, pair, pictures, CPU, 3, work.arms())
    assert list(arms) == ["stock fp32", "ours"]
    check_equal("pictures", {arm: each.plain_loss() for arm, each in arms.items()}, CPU)
    assert not arms["ours"].bf16
    assert arms["ours"].max_grad_norm is None
    assert arms["ours"].says == ["pictures: decoded again for each step"]


def test_flops_are_those_of_a_step_of_ours():
    work, (ours, _), pictures = prepared()
    found = describe(work, pictures, ours, 3)
    batch = example_batches(work, pictures, ours.config, 3)[0]
    with FlopCounterMode(display=False) as counter:  # describe has chosen eager attention, which can be counted
        ours(**batch).loss.backward()
    assert found["pictures"] == 10
    of_pictures = 10 * 12 * 2 * 75 * 22  # no gradient of the pixels is computed: patches of 5 x 5 x 3, width 22
    assert found["flops"] == pytest.approx(2 * counter.get_total_flops() + of_pictures)


def test_tables_give_pictures_a_second():
    work, (ours, _), pictures = prepared(at_least={"stock fp32": 3.0, "tuned": 1.0})
    facts = describe(work, pictures, ours, 3)
    times = dict(zip(ARMS, ([2.0, 2.0, 4.0], [2.0] * 3, [0.4] * 3, [0.5] * 3), strict=True))
    found = {"a": summarise(work, times, {}, facts, PEAKS)}
    assert {arm: each["pictures_per_s"] for arm, each in found["a"]["arms"].items()} == {
        "stock fp32": 5.0, "stock bf16": 5.0, "tuned": 25.0, "ours": 20.0
    }  # fmt: skip
    assert found["a"]["reached"] == {"stock fp32": True, "tuned": False}
    table = arm_table(found, PEAKS)
    assert "| time | pictures/s |" in table
    assert "| a | ours | 500 ms [500, 500] | 20 |" in table
    texts = {"useful_tokens": 50, "flops": 1e9, "texts": 2, "fill": 1.0, "scored": 5}
    found["b"] = summarise(Workload.model_validate(settings() | {"kind": "mlm"}), times, {}, texts, PEAKS)
    assert "| time | pictures or useful tokens/s |" in arm_table(found, PEAKS)
    assert line_of("a", work, facts).startswith("a: 10 pictures in 2 steps, ")


def test_memory_of_a_step_of_pictures_is_counted():
    work, pair, pictures = prepared()
    arm = build_arms(work, pair, pictures, CPU, 3, ["ours"])["ours"]
    peak = peak_of_step(arm)
    weights = 4 * pair[0].num_parameters()
    assert 3 * weights <= peak["held_bytes"] <= 3.1 * weights + 10_000
    assert peak["step_bytes"] > weights  # the gradients


def test_files_of_texts_are_refused_for_pictures():
    texts = {"files": "a.txt", "tokenizer": "b"}
    content = {"output": "x", "works": {"a": settings(texts=texts)}}
    with pytest.raises(UserError, match="texts: the pictures of kind pictures are drawn at random; remove it"):
        Benchmark.parse(content, "file")


def test_crops_are_those_of_the_example():
    crops = image_batches.crops_of(0)
    windows = [crops.window((100, 100), 0, index) for index in range(400)]
    areas = np.array([each.height * each.width / 1e4 for each in windows])
    assert areas.min() < 0.15
    assert areas.max() > 0.9
    assert 0.49 < areas.mean() < 0.59  # of 0.08 to 1, evenly
    assert 150 < sum(each.flipped for each in windows) < 250
