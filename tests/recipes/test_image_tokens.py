"""Pictures become rows, a causal model learns them, draws, and is measured, as a user runs it."""

import io
import json
import lzma

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.recipes.pictures import NAMES, SIZES, VIT, row, write_splits
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from decero.cli.main import main
from decero.data.image_tokens import PICTURE, image_tokens_of
from decero.evaluation.baselines import ByteNgrams
from decero.inference.drawing import GAP, load_drawing
from decero.tasks.foreseen_pictures import different, other_captions

SETTINGS = {"image_tokens": {"size": [4, 5], "num_channels": 3, "colors": 6, "caption_vocab_size": 270},
            "tracking": {"trackers": []}}  # fmt: skip
TINY = {"model_type": "decero_decoder", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "intermediate_size": 22, "max_position_embeddings": 64, "initializer_range": 0.1}
TRAINING = {"max_train_steps": 12, "global_batch_size": 8, "per_device_batch_size": 8, "eval_strategy": "no"}


def write(path, settings):
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, launch):
    """Rows and a trained model. Returns the folder."""
    folder = tmp_path_factory.mktemp("image_tokens")
    settings = {"output": str(folder / "rows"), "data": {"files": write_splits(folder)}} | SETTINGS
    said = launch("tokenize_images", write(folder / "rows.yaml", settings)).stdout
    assert "6 colors; test, train, validation.parquet" in said
    longest = json.loads((folder / "rows" / "result.json").read_text())["metric"]["longest_row"]
    assert f"data.max_length={longest} or more" in said
    write(folder / "tiny.yaml", TINY)
    run = {"output": str(folder / "run"), "model": {"config": str(folder / "tiny.yaml")},
           "tokenizer": {"name_or_path": str(folder / "rows" / "model")},
           "data": {"files": {split: str(folder / "rows" / f"{split}.parquet") for split in ("train", "validation")},
                    "max_length": longest},
           "optim": {"learning_rate": 0.01}, "training": TRAINING, "tracking": {"trackers": []}}  # fmt: skip
    said = launch("pretrain_causal_lm", write(folder / "run.yaml", run)).stdout
    assert f"next: decero draw {folder / 'run' / 'model'}" in said
    return folder


def test_rows_hold_the_class_and_the_reduced_picture(made):
    tokens = image_tokens_of(AutoTokenizer.from_pretrained(made / "rows" / "model"))
    assert tokens.classes == sorted(NAMES)
    palette = np.array(tokens.palette)
    for split, first in (("train", 0), ("test", SIZES["train"] + SIZES["validation"])):
        texts = pd.read_parquet(made / "rows" / f"{split}.parquet")["text"]
        assert len(texts) == SIZES[split]
        bare = 0
        for number, text in enumerate(texts):
            source = row(first + number)
            caption, indexes = tokens.parse(text, "row")
            small = Image.open(io.BytesIO(source["image"])).resize((5, 4), Image.Resampling.BOX)
            apart = ((np.asarray(small).reshape(20, 1, 3).astype(int) - palette) ** 2).sum(axis=-1)
            assert (apart.argmin(axis=1) == indexes).all()
            assert caption in (source["label"], "")
            bare += caption == ""
        assert 0 < bare < len(texts) / 3 if split == "train" else bare == 0


def test_a_row_that_cuts_pictures_gets_one_line(launch, made, tmp_path):
    words = ("data.max_length=20", f"output={tmp_path / 'cut'}")
    error = launch("pretrain_causal_lm", made / "run.yaml", *words, expect=2).stderr
    assert "data.max_length=20 cuts pictures of train" in error
    longest = AutoTokenizer.from_pretrained(made / "rows" / "model").model_max_length
    assert error.strip().endswith(f"set data.max_length={longest}")


def test_draw_writes_a_grid_of_the_classes(made, capsys):
    out = made / "grid.png"
    main(["draw", str(made / "run" / "model"), "--n", "3", "--seed", "2", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 3 of dark, light, a row each\n"
    loaded = load_drawing(str(made / "run" / "model"))
    pictures = loaded.draw(["dark"] * 3 + ["light"] * 3, seed=2)
    sheet = np.asarray(Image.open(out))
    factor = -(-64 // 5)
    assert sheet.shape == (2 * 4 * factor + GAP, 3 * 5 * factor + 2 * GAP, 3)
    assert (sheet[: 4 * factor : factor, : 5 * factor : factor] == pictures[0]).all()


def test_draw_keeps_the_upper_half_of_a_picture(made, capsys):
    (made / "one.png").write_bytes(row(1)["image"])
    model, out = str(made / "run" / "model"), made / "half.png"
    main(["draw", model, "--complete", str(made / "one.png"), "--n", "4", "--out", str(out)])
    assert f"4 of the lower half of {made / 'one.png'}" in capsys.readouterr().out
    loaded = load_drawing(model)
    upper = loaded.tokens.pictures(loaded.tokens.indexes(
        np.asarray(Image.open(made / "one.png").resize((5, 4), Image.Resampling.BOX))[None]
    ))[0, :2]  # fmt: skip
    sheet, factor = np.asarray(Image.open(out)), -(-64 // 5)
    for left in (0, 5 * factor + GAP):
        assert (sheet[: 2 * factor : factor, left : left + 5 * factor : factor] == upper).all()


@pytest.mark.parametrize(("words", "message"), [
    (["--class", "lihgt"], "--class lihgt: MODEL does not know it; did you mean light?"),
    (["--caption", "a red bag"], "--caption: MODEL knows classes, no captions; give --class NAME"),
    (["--steps", "4"], "--steps: MODEL draws pixel after pixel, with a step for each; remove it"),
    (["--temperature", "0"], "0 is not a number from 0.01 to 100"),
    (["--complete", "nothing.png"], "nothing.png"),
    (["--caption", " "], "is no caption: give words"),
])  # fmt: skip
def test_a_mistake_of_draw_gets_one_line(made, words, message, capsys):
    model = str(made / "run" / "model")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["draw", model, *words])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message.replace("MODEL", model) in error
    assert len(error.strip().splitlines()) == 1


@pytest.fixture
def settings(made, tmp_path):
    files = {split: str(made / "rows" / f"{split}.parquet") for split in ("train", "test")}
    return write(tmp_path / "bits.yaml", {
        "output": str(tmp_path / "bits"), "model": str(made / "run" / "model"), "data": {"files": files},
        "completed": 3, "per_device_eval_batch_size": 5, "tracking": {"trackers": []},
    })  # fmt: skip


def test_bits_a_pixel_are_those_of_the_model(launch, made, settings, tmp_path):
    printed = launch("evaluate_image_tokens", settings).stdout
    record = json.loads((tmp_path / "bits" / "result.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(made / "run" / "model")
    model, tokens = AutoModelForCausalLM.from_pretrained(made / "run" / "model").eval(), image_tokens_of(tokenizer)
    train, test = (pd.read_parquet(made / "rows" / f"{split}.parquet")["text"] for split in ("train", "test"))
    bits = []
    for text in test:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        bits.append(-rows[range(-21, -1), ids[-20:]].mean().item() / np.log(2))
    assert record["metric"]["bits_per_pixel"] == pytest.approx(np.mean(bits), rel=1e-4)
    assert record["standard_error"] == pytest.approx(np.std(bits, ddof=1) / np.sqrt(len(bits)), rel=1e-3)
    known, wanted = (b"".join(tokens.parse(text, "")[1].tobytes() for text in texts) for texts in (train, test))
    size = lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))  # noqa: E731
    assert record["baselines"]["lzma"] == pytest.approx(8 * (size(known + wanted) - size(known)) / len(wanted))
    assert record["baselines"]["ngram"] == pytest.approx(-np.log2(ByteNgrams(known).probabilities(wanted)).mean())
    assert record["baselines"]["uniform"] == pytest.approx(np.log2(6))
    assert 0 < record["baselines"]["png"] < 16
    table = pd.read_parquet(tmp_path / "bits" / "bits.parquet")
    assert (table["caption"] != table["another_caption"]).all()
    assert record["own_caption_is_better"] == pytest.approx((table["own"] < table["another"]).mean())
    assert f"the model, caption: own{record['metric']['bits_per_pixel']:>12.3f}" in printed
    for name, columns in (("completed", 6), ("captions", 5)):
        assert Image.open(tmp_path / "bits" / f"{name}.png").size[0] == columns * 5 * 13 + (columns - 1) * GAP
    assert "is finished" in launch("evaluate_image_tokens", settings, "--resume").stdout


@pytest.mark.parametrize(("words", "message"), [
    (["data.files.test=null"], "no test split"),
    (["data.files.test=CORPUS"], "test row 0: this is no picture of 4 x 5 pixels and 6 colors"),
    (["data.files.test=ONE"], "data.files.test: it has one picture"),
    (["model=TEXT"], "draws no pictures; train one with"),
])  # fmt: skip
def test_a_mistake_of_a_measurement_gets_one_line(launch, made, settings, tmp_path, words, message):
    (tmp_path / "corpus.jsonl").write_text('{"text": "a bag"}\n' * 2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=4, n_layer=1, n_head=1, vocab_size=9))
    model.save_pretrained(tmp_path / "text")
    pd.read_parquet(made / "rows" / "test.parquet")[:1].to_parquet(tmp_path / "one.parquet")
    words = [word.replace("ONE", str(tmp_path / "one.parquet")) for word in words]
    words = [
        word.replace("CORPUS", str(tmp_path / "corpus.jsonl")).replace("TEXT", str(tmp_path / "text")) for word in words
    ]
    error = launch("evaluate_image_tokens", settings, *words, expect=2).stderr
    assert message in error
    assert "Traceback" not in error


def test_a_picture_with_two_captions_counts_once_in_baselines():
    rows = np.array([[2, 1], [0, 3], [2, 1], [5, 5], [0, 3]], np.uint8)
    assert different(rows).tolist() == [[2, 1], [0, 3], [5, 5]]


def test_another_caption_is_another_one():
    captions = ["a", "b", "b", "c"] * 20
    found = other_captions(captions, seed=3)
    assert all(each != other for each, other in zip(captions, found, strict=True))
    assert set(found) == {"a", "b", "c"}
    assert other_captions(["a", "a"], seed=3) == ["", ""]


def test_drawings_of_tokens_are_judged_like_others(launch, made, tmp_path):
    torch.manual_seed(0)
    facts = {key: value for key, value in VIT.items() if key != "model_type"}
    judge = ViTForImageClassification(AutoConfig.for_model("vit", **facts, id2label=dict(enumerate(NAMES))))
    judge.save_pretrained(tmp_path / "judge")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "judge")
    run = {"output": str(tmp_path / "out"), "model": str(made / "run" / "model"), "classifier": str(tmp_path / "judge"),
           "data": {"files": write_splits(tmp_path)}, "pictures_per_class": 3, "repeats": 2, "temperature": 0.9,
           "tracking": {"trackers": []}}  # fmt: skip
    launch("evaluate_drawings", write(tmp_path / "run.yaml", run))
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(record["by_seed"]) == 2
    assert Image.open(tmp_path / "out" / "samples.png").size == (3 * 65 + 2 * GAP, 2 * 52 + GAP)
    palette = np.array(image_tokens_of(AutoTokenizer.from_pretrained(made / "run" / "model")).palette)
    sheet = np.asarray(Image.open(tmp_path / "out" / "nearest.png"))
    colors = set(map(tuple, sheet.reshape(-1, 3).tolist())) - {(255, 255, 255)}
    assert colors <= set(map(tuple, palette.tolist()))  # training pictures are reduced like drawings
    error = launch("evaluate_drawings", tmp_path / "run.yaml", "steps=4", f"output={tmp_path / 'no'}", expect=2).stderr
    assert "steps: " in error
    assert "draws pixel after pixel" in error


def test_captions_in_two_languages_give_two_rows(launch, tmp_path, capsys):
    rows = [row(number) for number in range(12)]
    for number, each in enumerate(rows):
        each["en"], each["es"] = f"a {each['label']} square", f"un cuadrado {number % 3}"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = {"files": {"train": str(tmp_path / "train.parquet")}, "caption_columns": ["en", "es"]}
    settings = write(tmp_path / "rows.yaml", {"output": str(tmp_path / "rows"), "data": data} | SETTINGS)
    launch("tokenize_images", settings, "image_tokens.uncaptioned=0")
    texts = pd.read_parquet(tmp_path / "rows" / "train.parquet")["text"]
    assert [text.partition(PICTURE)[0] for text in texts] == [each[key] for key in ("en", "es") for each in rows]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rows" / "model")
    assert image_tokens_of(tokenizer).classes == []
    torch.manual_seed(0)
    facts = {key: value for key, value in TINY.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("decero_decoder", **facts))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    main(["draw", str(tmp_path / "model"), "--caption", "a red square", "--caption", "dos", "--n", "2",
          "--out", str(tmp_path / "a.png")])  # fmt: skip
    assert "2 of a red square, dos, a row each" in capsys.readouterr().out
    for words, message in (([], "give --caption TEXT"), (["--class", "dark"], "knows no classes, it reads captions")):
        with pytest.raises(SystemExit):
            main(["draw", str(tmp_path / "model"), *words])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["data.caption_columns=[text]"], "text"),
    (["image_tokens.num_channels=2"], "image_tokens.num_channels"),
    (["image_tokens.size=[4]"], "image_tokens.size"),
    (["image_tokens.colors=300"], "image_tokens.colors"),
    (["image_tokens.colours=3"], "did you mean image_tokens.colors?"),
    (["data.caption_columns=[label,label]"], "a column is named twice"),
])  # fmt: skip
def test_a_mistake_of_rows_gets_one_line(launch, tmp_path, words, message):
    settings = {"output": str(tmp_path / "rows"), "data": {"files": write_splits(tmp_path)}} | SETTINGS
    error = launch("tokenize_images", write(tmp_path / "rows.yaml", settings), *words, expect=2).stderr
    assert message in error
    assert "Traceback" not in error
