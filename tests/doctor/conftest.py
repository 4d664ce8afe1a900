"""Make tiny runs and configurations of every recipe on given data."""

import copy
import json
import math
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.recipes.pictures import DETR, DIT, SEGFORMER, VIT
from tests.recipes.pictures import row as picture_row

from decero.data.tokenizer import train_tokenizer
from decero.doctor.examination import examine, open_run

LINE = "the market rose fell sharply on monday as banks and shares in london gained after profit news from tokyo"
WORDS = LINE.split(" ")
TOPICS = {"money": WORDS[:10], "places": WORDS[10:]}
SIZES = {"hidden_size": 22, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 37}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.1}


def sentence(number, length, words=WORDS):
    """Make a sentence from its arguments; they differ for all numbers below 10,000."""
    return " ".join(words[(number * 7 + number // 19 + i * i * (number % 5 + 1)) % len(words)] for i in range(length))


def documents(size, start=0):
    return [{"text": sentence(n, 9 + n % 7) + f" {n}"} for n in range(start, start + size)]


def examples(size, start=0):
    """Make texts of two topics with different words."""
    topics = ["money" if n % 3 else "places" for n in range(start, start + size)]
    return [{"text": f"{sentence(n, 9, TOPICS[t])} {n}", "label": t} for n, t in enumerate(topics, start)]


def choices(size, start=0):
    """Make texts of two topics, each with a phrase of either topic as choices."""
    topics = ["money" if n % 3 else "places" for n in range(start, start + size)]
    phrases = [[sentence(n, 2, TOPICS[topic]) for topic in ("money", "places")] for n in range(size)]
    rows = zip(examples(size, start), phrases, topics, strict=True)
    return [{"question": row["text"], "choices": both, "label": int(topic == "places")} for row, both, topic in rows]


def tagged(size, start=0):
    """Make sentences whose places are entities."""
    rows = [[*sentence(n, 9 + n % 7).split(), str(n)] for n in range(start, start + size)]
    return [
        {"tokens": words, "ner_tags": ["B-PLACE" if w in ("london", "tokyo") else "O" for w in words]} for words in rows
    ]


def pairs(size, start=0):
    return [{"source": f"{sentence(n, 7)} {n}", "target": sentence(n + 3, 5)} for n in range(start, start + size)]


def summaries(size, start=0):
    """Make documents of three sentences; the summary is one of them."""
    texts = [[f"{sentence(n + k, 3 + k)} {n}" for k in range(3)] for n in range(start, start + size)]
    return [{"text": "\n\n".join(text), "summary": text[n % 3]} for n, text in enumerate(texts)]


def questions(size, start=0):
    """Make questions for a word of a sentence; every third sentence does not hold the answer."""
    found = []
    for n in range(start, start + size):
        context = f"{sentence(n, 9)} {n} {WORDS[n % len(WORDS)]}"
        answers = {"text": [str(n)], "answer_start": [context.rindex(f" {n} ") + 1]}
        none = {"text": [], "answer_start": []}
        found.append({"context": context, "question": f"{sentence(n, 2)} {n}", "answers": answers if n % 3 else none})
    return found


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Matrices this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    """Raise the time limit, so that findings do not depend on the load of the machine."""
    monkeypatch.setattr("decero.doctor.weights.SECONDS", 600)


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """Save tokenizers and presets; return their folder."""
    folder = tmp_path_factory.mktemp("house")
    texts = [row["text"] for row in documents(101)] + [row["target"] for row in pairs(101)]
    common = {"model_max_length": 64, "min_frequency": 1, "show_progress": False}
    made = {
        "wordpiece": train_tokenizer(texts, algorithm="wordpiece", vocab_size=113, **common),
        "bpe": train_tokenizer(texts, algorithm="byte_level_bpe", vocab_size=293, **common),
        "sentinels": train_tokenizer(texts, algorithm="unigram", vocab_size=127, num_sentinels=13, **common),
    }
    for name, tokenizer in made.items():
        tokenizer.save_pretrained(folder / name)
    for kind in ("encoder", "decoder", "encoder_decoder"):
        size = {"encoder": 113, "decoder": 293, "encoder_decoder": 127}[kind]
        fields = {"model_type": f"decero_{kind}", "vocab_size": size} | SIZES
        if kind == "encoder_decoder":
            fields |= {"pad_token_id": 0, "eos_token_id": 1}
        (folder / f"{kind}.yaml").write_text(json.dumps(fields))
    for fields in (VIT | {"encoder_stride": VIT["patch_size"]}, SEGFORMER, DETR, DIT):
        (folder / f"{fields['model_type']}.yaml").write_text(json.dumps(fields))
    return folder


def pictures(size, start=0):
    """Make pictures of squares, with their class, mask and box; `write` stores them as Parquet."""
    return [picture_row(number) for number in range(start, start + size)]


KINDS = {  # recipe -> tokenizer, preset, rows, further settings
    "pretrain_mlm": ("wordpiece", "encoder", documents, {"objective": {"mlm_probability": 0.3}}),
    "pretrain_plm": ("wordpiece", "encoder", documents, {"objective": {"plm_probability": 0.3}}),
    "pretrain_rtd": ("wordpiece", "encoder", documents, {"objective": {"generator_size": 0.5}}),
    "pretrain_seq2seq": ("sentinels", "encoder_decoder", documents, {"objective": {"name": "span_corruption"}}),
    "pretrain_causal_lm": ("bpe", "decoder", documents, {"objective": {"name": "causal_lm"}}),
    "finetune_classification": (
        "wordpiece", "encoder", examples, {"objective": {"problem_type": "single_label_classification"}},
    ),
    "finetune_multiple_choice": ("wordpiece", "encoder", choices, {"objective": {"score": "head"}}),
    "finetune_token_classification": ("wordpiece", "encoder", tagged, {"objective": {"label_smoothing": 0.0}}),
    "finetune_seq2seq": ("sentinels", "encoder_decoder", pairs, {"objective": {"label_smoothing": 0.1}}),
    "finetune_causal_lm": ("bpe", "decoder", pairs, {"objective": {"separator": ":"}}),
    "finetune_extractive_summaries": ("wordpiece", "encoder", summaries, {"objective": {"num_sentences": 1}}),
    "finetune_question_answering": ("wordpiece", "encoder", questions, {"objective": {"no_answer": "on"}}),
    "finetune_image_classification": ("", "vit", pictures, {"data": {"label_column": "label"}}),
    "finetune_semantic_segmentation": ("", "segformer", pictures, {"data": {"mask_column": "mask"}}),
    "finetune_object_detection": ("", "detr", pictures, {"data": {"objects_column": "objects"}}),
    "pretrain_image_diffusion": ("", "decero_diffusion", pictures, {"objective": {"class_dropout": 0.1}}),
    "pretrain_masked_image": ("", "vit", pictures, {"objective": {"mask_ratio": 0.5}}),
}  # fmt: skip


@pytest.fixture
def write(house, tmp_path):
    """A run's folder with its config.yaml, and where asked for the lines of a log; or, `before`, the file alone.

    rows: split -> rows, instead of healthy ones. changes: section -> settings.
    """

    def write(name, rows=None, log=None, result=None, before=False, **changes):
        tokenizer, preset, make, more = KINDS[name]
        splits = {"train": make(101), "validation": make(31, 2000), "test": make(37, 3000)} | (rows or {})
        files = {}
        for split, each in splits.items():
            path = tmp_path / f"{split}.{'parquet' if make is pictures else 'jsonl'}"
            if make is pictures:
                pq.write_table(pa.Table.from_pylist(each), path)
                files[split] = str(path)
                continue
            path.write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
            files[split] = str(path)
        data = {"files": files, "max_length": 40} | ({"stride": 8} if make is questions else {})
        if make is pictures:
            data = {"files": files}
        if make is pairs:
            longest = (61, 59) if preset == "encoder_decoder" else (33, 31)  # of 64 positions, together for a decoder
            data = {
                "tasks": {"swap": {"files": files}},
                "max_source_length": longest[0],
                "max_target_length": longest[1],
            }
        settings = {
            "output": str(tmp_path / "run"),
            "model": {"config": str(house / f"{preset}.yaml")},
            **({"tokenizer": {"name_or_path": str(house / tokenizer)}} if tokenizer else {}),
            "data": data,
            "optim": {"learning_rate": 3e-3, "num_warmup_steps": 10},
            "training": {"max_train_steps": 100, "global_batch_size": 8},
            "tracking": {"trackers": []},
        }
        for section, each in [*copy.deepcopy(more).items(), *changes.items()]:
            settings.setdefault(section, {}).update(each)
        if before:
            path = tmp_path / "config.yaml"
            path.write_text(json.dumps(settings))
            return path
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(json.dumps(settings))
        if log is not None:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


@pytest.fixture
def found(write):
    """check -> its findings, for one check of a run as `write` makes it; ("recipe" -> what the recipe would refuse)."""

    def found(check, name, **how):
        work = open_run(str(write(name, **how)), name)
        return list(check(work))

    return found


@pytest.fixture
def everything(write):
    def everything(name, **how):
        return list(examine(open_run(str(write(name, **how)), name)))

    return everything


def curve_of(losses, every=1, **more):
    """Lines of metrics.jsonl under the schedule of `write`: 10 steps of warm-up, then linear down to step 100."""
    rates = [3e-3 * min(step / 10, (100 - step) / 90) for step in range(0, 100, every)]
    return [
        {"step": step * every + 1, "loss": loss, "learning_rate": rate, "data_wait": 0.004} | more
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=False))
    ]


@pytest.fixture(scope="session")
def make():
    """Return the functions that make data, because tests cannot import this file."""
    return SimpleNamespace(
        documents=documents, examples=examples, tagged=tagged, pairs=pairs, questions=questions, curve=curve_of,
        kinds=list(KINDS),
    )  # fmt: skip


@pytest.fixture
def healthy_log():
    """Make a loss that falls from 4.6 to 1.6 with a little noise."""
    return curve_of([1.6 + 3 * math.exp(-step / 15) + 0.03 * math.sin(step * 1.7) for step in range(100)])
