"""What --dry-run forecasts against what is then measured, on three shapes. Minutes long, and for a quiet machine:

python -m pytest -m slow tests/recipes/test_forecast_accuracy.py -s
"""

import json
import random
import re

import pytest

pytestmark = pytest.mark.slow

MEMORY, TIME = 0.15, 0.25  # how far a forecast may be off
SECONDS = 45  # of each real run, about
SHAPES = {
    "modern_encoder_tiny": ["training.mixed_precision=bf16", "training.global_batch_size=16"],
    "modern_encoder_small": ["training.global_batch_size=32", "training.per_device_batch_size=8"],
    "stock_bert_tiny": ["training.global_batch_size=24", "training.packing=off"],
}


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory, launch):
    """Make a corpus of 3,000 texts, a tokenizer of 2,000 entries and a configuration for them."""
    folder, draw = tmp_path_factory.mktemp("accuracy"), random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    often = [1 / (rank + 3) for rank in range(len(words))]
    for split, size in {"train": 3000, "validation": 150}.items():
        texts = [" ".join(draw.choices(words, often, k=draw.randint(20, 250))) for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = f"{{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}"
    tokenizer = folder / "tokenizer.yaml"
    tokenizer.write_text(f"output: {folder}/tokenizer\ndata: {{files: {files}}}\ntokenizer: {{vocab_size: 2000}}\n")
    launch("train_tokenizer", tokenizer)
    config = folder / "run.yaml"
    config.write_text(
        f"output: {folder}/run\nmodel: {{config: CONFIG}}\ntokenizer: {{name_or_path: {folder}/tokenizer/model}}\n"
        f"data: {{files: {files}, max_length: 128}}\ntraining: {{max_train_steps: 300, eval_strategy: steps}}\n"
    )
    return folder, config


def forecast(printed):
    """Read bytes, seconds per step and seconds per evaluation from the printed lines."""
    printed = re.sub(r"\n {18}", " ", printed)
    size, of_size = re.search(r"^memory +([\d.]+) (.B) a device", printed, flags=re.M).groups()
    number, unit = re.search(r"steps of ([\d.e+]+) (m?s)", printed).groups()
    step_s = float(number) / (1000 if unit == "ms" else 1)
    evaluation, evaluation_unit = re.search(r"evaluations? of ([\d.]+) (s|min)", printed).groups()
    factor = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[of_size]
    return float(size) * factor, step_s, float(evaluation) * {"s": 1, "min": 60}[evaluation_unit]


MISSED = pytest.mark.xfail(strict=False, reason="memory is 20 % too low in bf16: docs/experiments/forecasts.md")


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=MISSED if shape == "modern_encoder_tiny" else ()) for shape in SHAPES]
)
def test_forecasts_agree_with_measurements(shape, pretrain, launch, capsys):
    folder, config = pretrain
    words = [config, f"model.config=configs/model/{shape}.yaml", f"output={folder}/{shape}", *SHAPES[shape]]
    memory, step_s, evaluation_s = forecast(launch("pretrain_mlm", *words, "--dry-run", launcher=()).stdout)
    steps = max(30, min(1000, round(SECONDS / step_s)))
    words += [f"training.max_train_steps={steps}", f"training.eval_steps={steps}"]
    launch("pretrain_mlm", *words, launcher=())
    measured = json.loads((folder / shape / "result.json").read_text())
    of_memory = memory / measured["peak_memory_bytes"]
    of_time = (steps * step_s + evaluation_s) / measured["wall_time_s"]
    with capsys.disabled():
        print(
            f"\n{shape}: memory forecast {memory / 1e6:.0f} MB, measured {measured['peak_memory_bytes'] / 1e6:.0f} MB, "
            f"ratio {of_memory:.2f}; time forecast {steps * step_s + evaluation_s:.1f} s, "
            f"measured {measured['wall_time_s']:.1f} s, ratio {of_time:.2f}"
        )
    assert of_memory == pytest.approx(1, abs=MEMORY)
    assert of_time == pytest.approx(1, abs=TIME)
