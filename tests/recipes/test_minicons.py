"""Scores equal those of minicons in four stock families, at any batch size, of one process and of two.

`python -m pytest -m slow -rP tests/recipes/test_minicons.py` prints the differences.
"""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from decero.data.tokenizer import train_tokenizer
from decero.inference import score

pytestmark = pytest.mark.slow
SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 53}
SIZES |= {"max_position_embeddings": 97, "initializer_range": 0.4}
GPT2 = {"n_embd": 36, "n_layer": 2, "n_head": 2, "n_positions": 97, "initializer_range": 0.4}
MASKED = [
    (family, method) for family in ("bert", "roberta", "modernbert") for method in ("original", "within_word_l2r")
]
SPECIAL = ("pad", "bos", "eos", "cls", "sep")
BATCHES = {"1": (1, 1), "7": (7, 1), "64": (64, 1), "7 of two": (7, 2)}  # rows a batch and processes
LINE = "ba ce di fo gu la me ni ño pu ra sé ti vo xu zá sch eau ing str"
SYLLABLES = LINE.split(" ")
BETWEEN = [" "] * 12 + [", ", "; ", "-", " – ", "'", " (", ") ", "/", ": ", "... ", " 42 ", " 3.5 "]


def sentence(draw: random.Random) -> str:
    """Words of one to four syllables, with punctuation and numbers between them; some end in a word."""
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(draw.randint(3, 12))]
    begin = "".join(word + draw.choice(BETWEEN) for word in words[:-1])
    return begin.capitalize() + words[-1] + draw.choice(["", ".", "?", "!"])


SENTENCES = [sentence(random.Random(number)) for number in range(200)]


@pytest.fixture(scope="module")
def minicons():
    """The scorers of minicons, whose import silences transformers."""
    verbosity = transformers.logging.get_verbosity()
    scorers = pytest.importorskip("minicons.scorer")
    transformers.logging.set_verbosity(verbosity)
    return scorers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny checkpoint of each family, with random weights, whose tokenizer cuts words into several pieces."""
    made = {}
    for family in ("bert", "roberta", "modernbert", "gpt2"):
        algorithm, size = ("wordpiece", 151) if family == "bert" else ("byte_level_bpe", 347)
        tokenizer = train_tokenizer(
            SENTENCES, algorithm=algorithm, vocab_size=size, model_max_length=97, show_progress=False
        )
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
        ids = {name: value for name, value in ids.items() if value is not None}
        transformers.set_seed(11)
        sizes = GPT2 if family == "gpt2" else SIZES
        auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForMaskedLM
        made[family] = str(tmp_path_factory.mktemp(family))
        model = auto.from_config(AutoConfig.for_model(family, vocab_size=len(tokenizer), **sizes, **ids))
        model.save_pretrained(made[family])
        tokenizer.save_pretrained(made[family])
    return made


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration that scores the sentences as pairs, the first with the 101st and so on."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = zip(SENTENCES[:100], SENTENCES[100:], strict=True)
    lines = [json.dumps({"good": good, "bad": bad}) + "\n" for good, bad in pairs]
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    columns = "paradigm_column: null, phenomenon_column: null"
    (folder / "pairs.yaml").write_text(
        f"output: OUT\nmodel: {{name_or_path: MODEL}}\ndata: {{files: {{test: {folder}/test.jsonl}}, {columns}}}\n"
        "tracking: {trackers: []}\n"
    )
    return folder / "pairs.yaml"


def theirs(minicons, folder: str, method: str | None) -> list[list[float]]:
    """ln p of each token by minicons, which reads the checkpoint itself.

    It is given tokens: its masked scorer would call `batch_encode_plus`, which transformers 5 does not have, and its
    causal one would add the special tokens of an encoder.
    """
    scorer = minicons.MaskedLMScorer(folder) if method else minicons.IncrementalLMScorer(folder)
    options = {"PLL_metric": method} if method else {}
    begin = "" if method else scorer.tokenizer.bos_token
    found = []
    for text in SENTENCES:
        encoded = scorer.tokenizer(
            [begin + text], add_special_tokens=bool(method), return_token_type_ids=False, return_tensors="pt"
        )
        found += scorer.sequence_score(encoded, reduction=torch.Tensor.tolist, **options)
    return found


@pytest.mark.parametrize(("family", "method"), [*MASKED, ("gpt2", None)])
def test_scores_equal_minicons(minicons, folders, config, launch, two_processes, tmp_path, family, method):
    tokens = theirs(minicons, folders[family], method)
    wanted = np.array([sum(values) for values in tokens])
    ours = list(score(folders[family], SENTENCES, pseudo_likelihood=method))
    np.testing.assert_allclose(
        np.concatenate([each.log_probabilities for each in ours]), np.concatenate(tokens), rtol=0, atol=1e-4
    )
    found = {"score": np.array([each.total for each in ours])}
    options = [f"model.name_or_path={folders[family]}", *([f"objective.name={method}"] if method else [])]
    for name, (size, processes) in BATCHES.items():
        output, launcher = tmp_path / name, two_processes if processes == 2 else None
        words = *options, f"output={output}", f"per_device_eval_batch_size={size}"
        launch("evaluate_minimal_pairs", config, *words, launcher=launcher)
        assert json.loads((output / "result.json").read_text())["num_processes"] == processes
        table = pd.read_parquet(output / "predictions.parquet")
        found[name] = np.concatenate([table["good_score"], table["bad_score"]])
    largest = {name: np.abs(values - wanted).max() for name, values in found.items()}
    print(f"{family} {method}: {np.abs(wanted).max():.0f};", ", ".join(f"{n}: {d:.1e}" for n, d in largest.items()))
    assert max(largest.values()) < 1e-4, largest


def test_words_of_several_pieces_separate_the_methods(folders):
    for family in ("bert", "roberta", "modernbert"):
        original, within = (
            list(score(folders[family], SENTENCES, pseudo_likelihood=method))
            for method in ("original", "within_word_l2r")
        )
        differ = [abs(one.total - other.total) > 1 for one, other in zip(original, within, strict=True)]
        assert sum(differ) > 100
        assert sum(len(each.tokens) for each in original) > 4000
