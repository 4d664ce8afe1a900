"""Command lines of every recipe and of every command of `decero`, with hostile values for every setting there is."""

import argparse
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tests.faults.case import Case, Place, Step
from tests.faults.world import MEASURES, TRAINED

from decero.cli.main import COMMANDS
from decero.config.benchmark import Benchmark
from decero.config.bias import ProbeBias
from decero.config.command_line import OPTIONS
from decero.config.comparison import Compare
from decero.config.explain import section_of
from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.config.finetune_choice import FinetuneMultipleChoice
from decero.config.finetune_summaries import FinetuneExtractiveSummaries
from decero.config.finetune_words import FinetuneTokenClassification
from decero.config.finetuning import FinetuneCausalLM, FinetuneClassification, FinetuneSeq2Seq
from decero.config.language_scores import EvaluateMaskedLM, EvaluateMinimalPairs
from decero.config.pretraining import EvaluateCausalLM, PretrainCausalLM, PretrainMLM, PretrainSeq2Seq, TrainTokenizer
from decero.config.suite import EvaluateSuite
from decero.config.yaml_files import read_yaml

CLASSES = {
    "train_tokenizer": TrainTokenizer, "pretrain_mlm": PretrainMLM, "pretrain_causal_lm": PretrainCausalLM,
    "pretrain_seq2seq": PretrainSeq2Seq, "finetune_classification": FinetuneClassification,
    "finetune_causal_lm": FinetuneCausalLM, "finetune_seq2seq": FinetuneSeq2Seq,
    "finetune_multiple_choice": FinetuneMultipleChoice, "finetune_token_classification": FinetuneTokenClassification,
    "finetune_question_answering": FinetuneQuestionAnswering,
    "finetune_extractive_summaries": FinetuneExtractiveSummaries, "compare": Compare,
    "evaluate_causal_lm": EvaluateCausalLM, "benchmark": Benchmark, "evaluate_suite": EvaluateSuite,
    "evaluate_masked_lm": EvaluateMaskedLM, "evaluate_minimal_pairs": EvaluateMinimalPairs, "probe_bias": ProbeBias,
}  # fmt: skip
NAMES = {
    "tasks": "swap",
    "sets": "crows",
    "contenders": "ours",
    "works": "tiny",
}  # the entry that a mapping of sections has in the world
# A huge value of these asks for a long run, or for many processes; both are legitimate.
LONG = {"max_train_steps", "num_train_epochs", "rounds", "batches", "warmup_rounds"}
PROCESSES = {"dataloader_num_workers", "num_proc"}
SLOW = {"compile"}  # not switched on

TEXTS = [
    "", " ", "\n", "a\x00b", "../../../outside", "/dev/null", "/dev/null/x", "/etc/passwd", ".", "..", "~", "-",
    "--help", "a" * 300, "a/" * 600, "ünïcödé 数字", "e\u0301", "\u202e\u200b", "None", "null", "true", "1",
    "{{ 7 * 7 }}", "$HOME", "nonsense", "no/such-model", "package:nothing/x", "https://example.com/x", "[a-", "*",
    "**/*", "a=b", "'", '"', "</s>",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 1.5, -0.0, 2**31, 2**32, 2**63, 2**64, 10**21, 10**400, 1e-320, 1e38, 1e39, 1e300, math.nan,
    math.inf, -math.inf, True,
]  # fmt: skip
LISTS = [[], *([number] for number in NUMBERS), [0, 0], [None, 3], list(range(300))]
MAPPINGS = [
    {"train": []}, {"train": ""}, {"train": [[]]}, {"train": ["a", None]}, {"trian": "a.txt"}, {"test": "a.txt"},
    {"optim.learning_rate": [1e39]}, {"training.max_train_steps": [1, 2]}, {"optim": {"learning_rate": [0.1]}},
    {"eps": 0.0}, {"eps": math.nan}, {"betas": [2, 3]}, {"betas": "x"}, {"lr": 1}, {"momentum": -1}, {"params": []},
    {"ours": -1.0}, {"tuned": math.inf},
]  # fmt: skip
OTHERS = [None, [], {}, [None], [[]], {"": None}, {"a": {"b": {"c": [1]}}}, ["a", 1, None], "text", 7, 0.5, True]
RAW = [
    "[", "{a", "]", "&a [*a]", "*a", "!!python/object/apply:os.system ['touch sprung']", "!!binary aGVsbG8=",
    "2001-01-01", "[" * 3000, "9" * 5000, "%", "@", "`", "? a", "{a: 1, a: 2}", "\t", "- a\n- b", "<<: *x", "0x10",
    "1_000", "1e3", "~",
    "&a [a, &b [*a, *a], &c [*b, *b, *b, *b], &d [*c, *c, *c, *c], &e [*d, *d, *d, *d], [*e, *e, *e, *e, *e, *e, *e]]",
]  # fmt: skip
OVERRIDES = {
    "hidden_size": [0, -8, 7, 10**9, "large", 1.5], "num_attention_heads": [0, -1, 3, 7, 10**6],
    "vocab_size": [0, 1, -5, 10**12], "pad_token_id": [5000, -1, "x", None], "eos_token_id": [5000, [1, 2], -7],
    "num_hidden_layers": [0, -1, 10**7, "two"], "hidden_act": ["nonsense", None, 3],
    "hidden_dropout_prob": [2.0, -1.0, math.nan, "0.1"], "layer_norm_eps": [0.0, math.nan, -1.0],
    "max_position_embeddings": [0, -1, 5, 10**12], "initializer_range": [math.nan, -1.0, math.inf, 1e39],
    "position_embedding_type": ["nonsense", "relative", "rotary", "none"], "norm_type": ["nonsense"],
    "id2label": [{"0": "a"}, 5], "num_labels": [0, -1, 10**9], "problem_type": ["nonsense"],
    "torch_dtype": ["float99"], "dtype": ["float16", "int8"], "architectures": [["Nonsense"], 3],
    "auto_map": [{"AutoConfig": "evil.Evil"}], "model_type": ["bert", ""], "rope_theta": [0, -1, "x"],
    "num_key_value_heads": [0, 3, -1], "head_dim": [0, 7, -2], "layer_types": [["nonsense"], [], 3],
    "sliding_window": [0, -1],
}  # fmt: skip


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings of a class, `training.save_steps` with its field."""
    for name, found in cls.model_fields.items():
        inner = section_of(found.annotation)
        yield f"{prefix}{name}", found
        if inner is not None:
            yield from settings(inner, f"{prefix}{name}.{NAMES[name]}." if name in NAMES else f"{prefix}{name}.")


def kinds(annotation: Any) -> set:
    """The plain types and the choices in an annotation."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return set(inner)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return set().union(*(kinds(each) for each in inner))
    return {typing.get_origin(annotation) or annotation}


def allowed(found: FieldInfo, value: Any) -> bool:
    """Whether the schema lets the value of a setting through."""
    if section_of(found.annotation):
        return False
    try:
        TypeAdapter(Annotated[found.annotation, found], config=ConfigDict(strict=True)).validate_python(value)
    except (ValidationError, OverflowError):
        return False
    return True


def hostile(dice, name: str, found: FieldInfo) -> Any:
    """Draw a value for a setting. In most cases one that the schema allows: what it refuses goes no further."""
    values = [any_value(dice, name, found) for _ in range(12)]
    good = [value for value in values if allowed(found, value)]
    return good[0] if good and dice.random() < 0.7 else values[0]


def any_value(dice, name: str, found: FieldInfo) -> Any:
    """Draw a value from the type, the bounds and the choices of a setting, or one of another type."""
    wanted = kinds(found.annotation)
    bounds = [
        getattr(each, bound) for each in found.metadata for bound in ("ge", "gt", "le", "lt") if hasattr(each, bound)
    ]
    near = [value for bound in bounds for value in (bound, bound - 1, bound + 1, -bound, bound * 0.999999)]
    choices = [each for each in wanted if isinstance(each, str)]
    pools = [OTHERS]
    pools += [NUMBERS] * 3 if wanted & {int, float} else []
    pools += [near] * 3 if near else []
    pools += [choices, [each.upper() for each in choices], [f"{each}x" for each in choices]] if choices else []
    pools += [TEXTS] * 3 if str in wanted and not choices else []
    pools += [LISTS + [[text] for text in TEXTS]] * 3 if list in wanted else []
    pools += [MAPPINGS + [{text: "x"} for text in TEXTS]] * 3 if dict in wanted else []
    value = dice.choice(dice.choice(pools))
    leaf = name.rpartition(".")[2]
    big = isinstance(value, int | float) and value > 5
    return 2 if (big and leaf in PROCESSES) or (leaf in SLOW and value is True) else value


def renamed(place: Place, recipe: str, name: str) -> dict:
    """The entries of a mapping, such as the contenders, and the last of them under a hostile name."""
    entries = read_yaml(place.world.config(recipe))
    for key in name.split("."):
        entries = entries[key]
    return entries | {place.dice.choice(TEXTS): list(entries.values())[-1]}


def flow(value: Any) -> str:
    """Write a value as YAML in one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value)


def word(place: Place, recipe: str) -> tuple[str, bool]:
    """Draw one `key=value`, and tell whether it may ask for a long run."""
    dice, all_settings = place.dice, list(settings(CLASSES[recipe]))
    name, found = dice.choice(all_settings)
    if name == "output":
        value = dice.choice(
            [f"{place.out}/{text}" for text in TEXTS if ".." not in text] + ["/dev/null/x", "/dev/null", "\x00"]
        )
    elif name.endswith("overrides"):
        field = dice.choice(list(OVERRIDES))
        name, value = f"{name}.{field}", dice.choice(OVERRIDES[field])
    elif name.rpartition(".")[2] in NAMES and dice.random() < 0.6:
        value = renamed(place, recipe, name)
    else:
        value = hostile(dice, name, found)
    text = flow(value)
    if name != "output" and dice.random() < 0.12:
        text = dice.choice(RAW)
    if dice.random() < 0.06:
        name = dice.choice([name[:-1], f"{name}s", name.upper(), f"{name}.x", f".{name}", name.replace(".", "..")])
    leaf, text = name.rpartition(".")[2], text.replace("\x00", "\\0")
    long = leaf in LONG or (leaf in ("training", "seeds", "works", "tune") and any(c.isdigit() for c in text))
    return f"{name}={text}", long or "000" in text


def recipe_line(place: Place) -> Case:
    dice, world = place.dice, place.world
    recipe = dice.choice([*CLASSES, *TRAINED])
    drawn = [word(place, recipe) for _ in range(dice.choice([1, 1, 1, 2, 3]))]
    words = [world.config(recipe), f"output={place.out}", *(text for text, _ in drawn)]
    if recipe not in MEASURES and (any(long for _, long in drawn) or dice.random() < 0.25):
        words.append("--dry-run")
    if dice.random() < 0.15:
        options = [
            *OPTIONS,
            "--help",
            "-x",
            "--dry-run=1",
            "--budget=nan",
            "--budget=2s",
            "--device=h100",
            "--device=",
            "--resume",
        ]
        words.append(dice.choice(options))
    return Case([Step(recipe, words)], [f"{recipe}: {' '.join(text for text, _ in drawn)[:300]}"])


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The commands of `decero`, each with its parser."""
    commands = argparse.ArgumentParser().add_subparsers()
    for add in COMMANDS:
        add(commands)
    return commands.choices


def decero_line(place: Place) -> Case:
    dice, world = place.dice, place.world
    name, parser = dice.choice(sorted(parsers().items()))
    models = sorted(path for path in world.models().iterdir())
    run = lambda: world.run(dice.choice(TRAINED))  # noqa: E731
    good = {
        "folder": lambda: run() / "model", "repo_id": lambda: "me/model", "source": lambda: dice.choice(models),
        "out": lambda: place.out / "model", "model": lambda: dice.choice([*models, run() / "model"]), "run": run,
        "names": lambda: dice.choice(["text_en", "txt"]),
        "text": lambda: dice.choice([*TEXTS, "the market [MASK] rose", "the team won\nthe match", "word " * 400]),
    }  # fmt: skip
    words, story = [name], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        pool = list(action.choices or ()) + [str(each) for each in NUMBERS] + TEXTS
        if action.option_strings:
            if dice.random() < 0.7:
                continue
            values = [] if action.nargs == 0 else [dice.choice(pool)]
            if action.dest == "out":
                values = [str(place.out / dice.choice(["x.csv", "x.parquet", "x"]))]
            words += [dice.choice(action.option_strings), *values]
            story += words[-1 - len(values) :]
        elif dice.random() < 0.85:
            words.append(good[action.dest]())
        elif action.dest != "out":
            words.append(dice.choice(TEXTS))
    if name == "push" and "--dry-run" not in words:
        words.append("--dry-run")
    if dice.random() < 0.08:
        words.append(dice.choice(["--nonsense", "more", "-", "--"]))
    words = [str(each).replace("\x00", "\\0") for each in words]
    stdin = dice.choice([b"", b"hello\n", b"\xff\xfe\n", b"\x00\n", b"a\r\nb\rc\n", b"word " * 500])
    return Case([Step("decero", words, stdin, (0, 1) if name == "doctor" else (0,))], [f"{name} {' '.join(story)}"])


def draw(place: Place) -> Case:
    return decero_line(place) if place.dice.random() < 0.25 else recipe_line(place)
