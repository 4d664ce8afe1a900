"""The tiny world that the attack damages: corpora, tokenizers, a configuration a recipe, runs. Made on demand."""

import functools
import json
import random
import struct
import threading
import zlib
from pathlib import Path

from tests.faults.server import Done, Server

TOPICS = {
    "sport": "the team won the match after a late goal by the young striker in front of a loud crowd",
    "money": "the bank raised its rate as shares fell and the market feared a weaker profit this year",
}
TAGGED = ("team", "bank", "the", "its")
WORDS = {"team": "bank", "match": "rate", "goal": "profit", "late": "weaker", "crowd": "market"}
SIZES = {"train": 36, "validation": 9, "test": 10}
SHAPE = "hidden_size: 20\nnum_hidden_layers: 1\nnum_attention_heads: 2\nintermediate_size: 23\n"
PRESETS = {
    "encoder": "model_type: decero_encoder\nvocab_size: 97\nmax_position_embeddings: 31\nclassifier_pooling: mean\n",
    "decoder": "model_type: decero_decoder\nvocab_size: 307\nmax_position_embeddings: 61\n",
    "encoder_decoder": "model_type: decero_encoder_decoder\nvocab_size: 113\nmax_position_embeddings: 61\n"
    "pad_token_id: 0\neos_token_id: 1\ninitializer_range: 0.1\n",
}
TOKENIZERS = {
    "encoder": "{vocab_size: 90, lowercase: true}",
    "decoder": "{algorithm: byte_level_bpe, vocab_size: 293}",
    "encoder_decoder": "{algorithm: unigram, vocab_size: 110, num_sentinels: 11}",
}
MODEL = "model: {config: PRESETS/KIND.yaml}\ntokenizer: {name_or_path: TOKENIZERS/KIND/model}\n"
TRAINING = """\
optim: {learning_rate: 1e-2, num_warmup_steps: 1}
training: {max_train_steps: 4, global_batch_size: 6, per_device_batch_size: 3, logging_steps: 1, eval_strategy: steps,
  eval_steps: 2, save_steps: 2, save_total_limit: 2}
"""
TEXTS = "data: {files: FILES, max_length: 24}\n"
CHOICES = "data: {files: FILES, text_column: text, choices: [sport, money], max_length: 24}\n"
PAIRS = """\
data:
  tasks: {swap: {files: PAIRS, source_column: en, target_column: es}}
  max_source_length: 24
  max_target_length: 20
generation: {metric: METRIC, max_new_tokens: 6, validation_rows: 4}
"""
QUESTIONS = "data: {files: QUESTIONS, max_length: 24, stride: 6, max_answer_length: 5}\n"
SUMMARIES = "data: {files: SUMMARIES, max_length: 24}\nobjective: {num_sentences: 1}\n"
RECIPES = {  # recipe -> kind of model, settings
    "train_tokenizer": ("encoder", f"data: {{files: FILES}}\ntokenizer: {TOKENIZERS['encoder']}\n"),
    "pretrain_mlm": ("encoder", MODEL + TEXTS + TRAINING),
    "pretrain_causal_lm": ("decoder", MODEL + TEXTS + TRAINING),
    "pretrain_seq2seq": ("encoder_decoder", MODEL + TEXTS + TRAINING),
    "finetune_classification": ("encoder", MODEL + TEXTS + TRAINING),
    "finetune_multiple_choice": ("encoder", MODEL + CHOICES + TRAINING),
    "finetune_token_classification": ("encoder", MODEL + TEXTS + TRAINING),
    "finetune_causal_lm": ("decoder", MODEL + PAIRS.replace("METRIC", "text") + TRAINING),
    "finetune_seq2seq": ("encoder_decoder", MODEL + PAIRS.replace("METRIC", "translation") + TRAINING),
    "finetune_question_answering": ("encoder", MODEL + QUESTIONS + TRAINING),
    "finetune_extractive_summaries": ("encoder", MODEL + SUMMARIES + TRAINING),
    "evaluate_causal_lm": ("decoder", MODEL + TEXTS),
    "evaluate_masked_lm": ("encoder", MODEL + TEXTS),
    "evaluate_minimal_pairs": (
        "encoder",
        MODEL + "data: {files: MINIMAL}\nunigram: {files: FILES}\ncontrol: {seeds: [0, 1]}\n",
    ),
    "probe_bias": (
        "encoder",
        MODEL
        + "sets:\n  crows: {format: crows_pairs, data: {files: MINIMAL}, columns: {more: good, less: bad, category:"
        " paradigm}}\nunigram: {files: FILES}\ncontrol: {seeds: [0, 1]}\n",
    ),
    "compare": (
        "encoder",
        "contenders:\n  ours: {model: {config: PRESETS/KIND.yaml}, tokenizer: {name_or_path: TOKENIZERS/KIND/model}}\n"
        "  words: {baseline: tfidf}\nreference: ours\nseeds: [0, 1]\nkeep_models: true\n" + TEXTS + TRAINING,
    ),
    "evaluate_suite": (
        "encoder",
        "tasks:\n  swap: {data: {files: FILES, max_length: 24}}\n"
        "  length: {data: {files: FILES, label_column: score, max_length: 24}, objective: {problem_type: regression},"
        " metric: pearson}\n"
        "contenders:\n  ours: {model: {config: PRESETS/KIND.yaml}, tokenizer: {name_or_path: TOKENIZERS/KIND/model}}\n"
        "  words: {baseline: first}\nreference: ours\nseeds: [0, 1]\n" + TRAINING,
    ),
    "benchmark": (
        "encoder",
        "works:\n  tiny: {kind: mlm, model: {config: PRESETS/KIND.yaml}, stock: bert, batch_size: 2, length: 16,"
        " rounds: 1}\n"
        "warmup_rounds: 1\nmemory: false\n",
    ),
}
MEASURES = ("evaluate_causal_lm", "evaluate_masked_lm", "evaluate_minimal_pairs", "probe_bias")  # train nothing
MANY = ("compare", "evaluate_suite")  # train several models
TRAINED = [name for name, (_, text) in RECIPES.items() if "\ntraining:" in text and name not in MANY]


def examples(sizes=SIZES, seed=5) -> dict[str, list[dict]]:
    """Short texts of two topics with labels of every kind, by split."""
    draw, splits = random.Random(seed), {}
    for split, size in sizes.items():
        splits[split] = rows = []
        for number in range(size):
            topic = list(TOPICS)[number % 2]
            text = " ".join(draw.choices(TOPICS[topic].split(), k=draw.randint(6, 14)))
            rows.append({"text": text, "label": topic, "tags": [topic] if number % 3 else [], "score": len(text) / 10})
            tags = [f"B-{topic}" if word in TAGGED else "O" for word in text.split()]
            rows[-1] |= {"tokens": text.split(), "ner_tags": ["B-sport", *tags[1:]]}
    return splits


def pairs(sizes=SIZES, seed=7) -> dict[str, list[dict]]:
    """Sentences of a language of five words with their translation, by split."""
    draw, splits = random.Random(seed), {}
    for split, size in sizes.items():
        drawn = [draw.choices(list(WORDS), k=draw.randint(1, 5)) for _ in range(size)]
        splits[split] = [{"en": " ".join(row), "es": " ".join(WORDS[word] for word in row)} for row in drawn]
    return splits


def questions(sizes=SIZES, seed=9) -> dict[str, list[dict]]:
    """Questions for the word after one of a text, by split; every third text does not hold the answer."""
    draw, splits = random.Random(seed), {}
    for split, size in sizes.items():
        splits[split] = rows = []
        for number in range(size):
            words = draw.choices(TOPICS["sport"].split(), k=draw.randint(6, 40))
            at = draw.randrange(len(words) - 1)
            found = [(words[at + 1], len(" ".join([*words[: at + 1], ""])))] if number % 3 else []
            answers = {"text": [word for word, _ in found], "answer_start": [start for _, start in found]}
            rows.append({"context": " ".join(words), "question": f"after {words[at]}", "answers": answers})
    return splits


def summaries(sizes=SIZES, seed=11) -> dict[str, list[dict]]:
    """Documents of three sentences, by split; the summary is one of them, more often the last."""
    draw, splits = random.Random(seed), {}
    for split, size in sizes.items():
        splits[split] = rows = []
        for number in range(size):
            sentences = [" ".join(draw.choices(TOPICS["sport"].split(), k=draw.randint(3, 6))) for _ in range(3)]
            rows.append({"text": "\n\n".join(sentences), "summary": sentences[-(number % 2 + 1)]})
    return splits


def minimal_pairs(sizes=SIZES, seed=13) -> dict[str, list[dict]]:
    """Texts that differ in their first word, by split."""
    draw, splits = random.Random(seed), {}
    for split, size in sizes.items():
        splits[split] = rows = []
        for number in range(size):
            one, other, *words = draw.sample(sorted(set(TOPICS["money"].split())), k=5)
            texts = {"good": " ".join([one, *words]), "bad": " ".join([other, *words])}
            rows.append(texts | {"paradigm": f"p{number % 2}", "phenomenon": "first word"})
    return splits


def once(make):
    """Make each thing once, whoever asks first."""

    @functools.wraps(make)
    def made(self, *names):
        with self.lock:
            key = (make.__name__, *names)
            if key not in self.made:
                self.made[key] = make(self, *names)
            return self.made[key]

    return made


class World:
    def __init__(self, folder: Path, server: Server):
        self.folder, self.server, self.made, self.lock = folder, server, {}, threading.RLock()
        for name in ("data", "presets", "configs"):
            (folder / name).mkdir(parents=True)
        for name, fields in PRESETS.items():
            (folder / "presets" / f"{name}.yaml").write_text(fields + SHAPE)
        made = {"": examples(), "pairs_": pairs(), "questions_": questions(), "summaries_": summaries()}
        made["minimal_"] = minimal_pairs()
        for name, splits in made.items():
            for split, rows in splits.items():
                lines = "".join(f"{json.dumps(row)}\n" for row in rows)
                (folder / "data" / f"{name}{split}.jsonl").write_text(lines)

    def files(self, prefix: str = "") -> str:
        """The corpus as a value of data.files."""
        return "{" + ", ".join(f"{s}: {self.folder}/data/{prefix}{s}.jsonl" for s in SIZES) + "}"

    @once
    def config(self, recipe: str) -> Path:
        """The configuration file of a recipe. Its output is to be named on the command line."""
        kind, text = RECIPES[recipe]
        if "TOKENIZERS" in text:
            self.tokenizer(kind)
        for word, value in {
            "PRESETS": f"{self.folder}/presets", "TOKENIZERS": f"{self.folder}/tokenizers", "KIND": kind,
            "FILES": self.files(), "PAIRS": self.files("pairs_"),
            "QUESTIONS": self.files("questions_"), "SUMMARIES": self.files("summaries_"),
            "MINIMAL": self.files("minimal_"),
        }.items():  # fmt: skip
            text = text.replace(word, value)
        path = self.folder / "configs" / f"{recipe}.yaml"
        path.write_text(f"output: OUTPUT\nseed: 3\n{text}tracking: {{trackers: []}}\n")
        return path

    @once
    def tokenizer(self, kind: str) -> Path:
        path = self.folder / "configs" / f"tokenizer_{kind}.yaml"
        output = self.folder / "tokenizers" / kind
        path.write_text(f"output: {output}\ndata: {{files: {self.files()}}}\ntokenizer: {TOKENIZERS[kind]}\n")
        self.check(self.server.run("train_tokenizer", [path]))
        return output / "model"

    def run(self, recipe: str) -> Path:
        """The folder of a finished run."""
        return self.run_in(recipe, "finished")

    @once
    def run_in(self, recipe: str, state: str) -> Path:
        """The folder of a tiny run: finished, or stopped (killed) at its fourth step."""
        output = self.folder / "runs" / f"{recipe}_{state}"
        words = [self.config(recipe), f"output={output}"]
        if state == "finished":
            self.check(self.server.run(recipe, words))
        else:
            kill = (
                {"point": "before a step", "call": 4} if recipe in TRAINED else {"point": "before scoring", "call": 1}
            )
            done = self.server.run(recipe, words, kill=kill)
            assert done.code == -9, done.text
        return output

    @once
    def models(self) -> Path:
        """Tiny checkpoints of stock and decero classes, a folder each: see model_folders.py."""
        tokenizers = [self.tokenizer(kind) for kind in PRESETS]
        self.check(self.server.run("tests.faults.model_folders:build", [self.folder / "models", *tokenizers]))
        return self.folder / "models"

    @once
    def bomb(self) -> bytes:
        """Two gigabytes of zeros as a gzip file: a compressed block of them, 128 times."""
        block, packer, crc = bytes(1 << 24), zlib.compressobj(wbits=-zlib.MAX_WBITS), 0
        packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
        for _ in range(128):
            crc = zlib.crc32(block, crc)
        header, trailer = b"\x1f\x8b\x08" + bytes(7), struct.pack("<II", crc, 128 * len(block))
        return header + 128 * packed + packer.flush() + trailer

    def check(self, done: Done):
        assert done.code == 0, done.text
