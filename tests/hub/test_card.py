"""The model card states only what was measured, its code loads the model, and it keeps a user's text."""

import json
import re
from pathlib import Path

import pytest
import transformers
from huggingface_hub import ModelCard

from decero.errors import UserError
from decero.hub.card import MARK, model_card, read_run, without_paths
from decero.hub.remote_code import export_remote_code
from decero.models import AUTO_CLASSES

CONFIG = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
RESULT = {
    "metric": {"accuracy": 0.875, "f1_macro": 0.8125},
    "split": "test",
    "seed": 7,
    "steps": 1200,
    "tokens": 3456789,
    "wall_time_s": 61.2,
    "device": "cuda",
    "num_processes": 2,
    "machine": "x86_64, 16 cores",
    "peak_memory_bytes": 2_500_000_000,
    "train_examples": 4321,
}
SETTINGS = {
    "model": {"name_or_path": "FacebookAI/roberta-base", "config": None},
    "data": {"name": "stanfordnlp/imdb", "max_length": 256},
}


def card(config=CONFIG, result=RESULT, settings=SETTINGS, readme=None):
    return ModelCard(model_card("me/tiny", config, result, settings, readme))


def test_results_are_in_the_metadata_and_in_the_text():
    said = card()
    assert [(r.metric_type, r.metric_value, r.dataset_type, r.dataset_split) for r in said.data.eval_results] == [
        ("accuracy", 0.875, "stanfordnlp/imdb", "test"),
        ("f1_macro", 0.8125, "stanfordnlp/imdb", "test"),
    ]
    assert said.data.to_dict()["model-index"][0]["name"] == "me/tiny"
    assert said.data.pipeline_tag == "text-classification"
    assert said.data.datasets == ["stanfordnlp/imdb"]
    assert said.data.base_model == "FacebookAI/roberta-base"
    assert said.data.license is None
    for words in (
        "| metric | test |", "| accuracy | 0.8750 |", "One run, seed 7", "4,321 training examples", "256 tokens",
        "61 s on 2 × cuda (x86_64, 16 cores), 1,200 steps, 3,456,789 tokens", "peak memory 2.5 GB",
        "fine-tuned from `FacebookAI/roberta-base`", "run/config.yaml", "run/result.json", "## License\n\nNot stated.",
    ):  # fmt: skip
        assert words in said.text, words


def test_results_of_several_seeds_come_with_their_spread():
    several = {"metric": {"accuracy": {"mean": 0.9, "sd": 0.01, "low": 0.88, "high": 0.92}}, "seeds": [0, 1, 2]}
    said = card(result=several)
    assert "| accuracy | 0.9000 ± 0.0100 [0.8800, 0.9200] |" in said.text
    assert "Seeds: 0, 1, 2." in said.text
    assert "was not measured." not in said.text.partition("## Training data")[0]
    assert said.data.eval_results[0].metric_value == 0.9


def test_without_a_record_nothing_is_claimed():
    said = card(result=None, settings=None)
    assert said.data.eval_results is None
    assert said.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "No results were recorded with this model." in said.text
    assert said.text.count("Not recorded.") == 2  # training data, cost
    assert not re.search(r"\d", said.text.partition("## What was measured")[2])
    assert "run/" not in said.text


@pytest.mark.parametrize("kind", ["stock", "decero", "remote code", "tokenizer"])
def test_the_way_to_load_it_that_the_card_shows_works(model_folder, tokenizer, tmp_path, kind):
    """Run the card's Python code, with the folder instead of the repository name."""
    folder = model_folder
    if kind == "stock":
        sizes = {"vocab_size": 97, "n_embd": 6, "n_layer": 1, "n_head": 1, "n_positions": 11}
        folder = tmp_path / "stock"
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if kind == "remote code":
        folder = export_remote_code(model_folder, tmp_path / "out")
    config = None if kind == "tokenizer" else json.loads((folder / "config.json").read_text())
    said = card(config, None, None)
    code = re.search(r"```python\n(.*?)```", said.text, flags=re.S)[1]
    assert ("import decero" in code) == (kind == "decero")
    assert ("trust_remote_code=True" in code) == (kind == "remote code")
    assert said.data.library_name == ("decero" if kind == "decero" else "transformers")
    scope = {}
    exec(code.replace("me/tiny", str(folder)).replace(", trust_remote_code=True", ""), scope)
    assert scope["tokenizer"]("the bank")["input_ids"]
    if config:
        assert type(scope["model"]).__name__ == config["architectures"][0]


@pytest.mark.parametrize(
    ("model_type", "architecture", "auto"),
    [(c.model_type, head.__name__, auto.__name__) for c, heads in AUTO_CLASSES.items() for auto, head in heads.items()]
    + [
        ("bert", "BertModel", "AutoModel"),
        ("roberta", "RobertaForTokenClassification", "AutoModelForTokenClassification"),
        ("t5", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("marian", "MarianMTModel", "AutoModelForSeq2SeqLM"),
        ("llama", "LlamaForCausalLM", "AutoModelForCausalLM"),
        ("bert", "BertForSomethingOfMyOwn", "AutoModel"),
        ("nobody-knows-it", "Unheard", "AutoModel"),
    ],
)
def test_each_head_is_loaded_by_its_own_auto_class(model_type, architecture, auto):
    said = card({"model_type": model_type, "architectures": [architecture]}, None, None)
    assert f"\nmodel = {auto}.from_pretrained(" in said.text


def test_a_head_of_foreign_code_loads_as_its_auto_map_says():
    auto_map = {"AutoModel": "theirs.TheirModel", "AutoModelForCausalLM": "theirs.TheirCausalLM"}
    said = card({"model_type": "nobody-knows-it", "architectures": ["TheirCausalLM"], "auto_map": auto_map}, None, None)
    assert '\nmodel = AutoModelForCausalLM.from_pretrained("me/tiny", trust_remote_code=True)\n' in said.text
    assert said.data.pipeline_tag == "text-generation"


def test_a_users_card_is_kept_and_its_metadata_completed():
    mine = "---\nlicense: mit\npipeline_tag: zero-shot-classification\nmine: 1\n---\n\n# My words\n\n{{ not jinja }}\n"
    said = card(readme=mine)
    assert said.text == "\n# My words\n\n{{ not jinja }}\n"
    assert (said.data.license, said.data.pipeline_tag, said.data.mine) == ("mit", "zero-shot-classification", 1)
    assert said.data.datasets == ["stanfordnlp/imdb"]
    assert said.data.eval_results[0].metric_value == 0.875
    assert card(readme="# No metadata at all\n").text == "# No metadata at all\n"


EVIL = "<img src=x onerror=alert(1)> [a](http://evil.org) `b` **c** |d| www.evil.org\n# e"


def test_no_text_of_a_record_becomes_html_or_markdown():
    config = {"model_type": EVIL, "architectures": [EVIL]}
    record = RESULT | {"metric": {EVIL: 0.5}, "split": EVIL, "device": EVIL, "machine": EVIL, "seeds": [EVIL, EVIL]}
    settings = {
        "model": {"name_or_path": EVIL, "config": EVIL},
        "data": {"files": {"train": EVIL}, "config_name": EVIL, "revision": EVIL},
    }
    for model in ({"name_or_path": EVIL}, {"config": EVIL}):
        said = card(config, record, settings | {"model": model}, f"---\nlicense: {json.dumps(EVIL)}\n---\n").text
        assert not re.search(r"<(?!!--|/?code>)", said)
        for sign in ("[a]", "`b`", "**c**", "|d|", "www.", "http:", "\n# e"):
            assert sign not in said, sign
    assert said.count("&#60;img src&#61;x") >= 9


def test_plain_names_are_shown_as_they_are():
    said = card(result=RESULT | {"metric": {"eval_f1 (macro)": 0.5}}, settings={"data": {"files": {"train": "a*.txt"}}})
    assert "| eval_f1 (macro) | 0.5000 |" in said.text
    assert "`a*.txt`" in said.text


@pytest.mark.parametrize("value", [None, "x", True, {"mean": "x"}, {"sd": 1}, [1], float("nan"), 10**400])
def test_a_metric_that_is_no_number_is_left_out(value):
    said = card(result={"metric": {"a": value, "b": {"mean": 0.5, "sd": "x", "low": None, "high": {}}}})
    assert "| b | 0.5000 |" in said.text
    assert "| a |" not in said.text


def test_a_licence_alone_goes_into_the_card_that_is_written():
    said = card(readme="---\nlicense: cc-by-4.0\n---\n\n")
    assert "## License\n\ncc-by-4.0\n" in said.text
    assert said.data.license == "cc-by-4.0"
    assert "| accuracy | 0.8750 |" in said.text


def test_an_earlier_pushed_card_is_rewritten_with_its_metadata():
    first = str(card()).replace("library_name:", "license: mit\nlibrary_name:")
    assert MARK in first
    said = card(result=RESULT | {"metric": {"accuracy": 0.5}}, readme=first)
    assert [r.metric_value for r in said.data.eval_results] == [0.5]
    assert "0.8750" not in str(said)
    assert said.data.license == "mit"


def test_metadata_that_cannot_be_read_is_named():
    with pytest.raises(UserError, match=r"README\.md: cannot read its metadata"):
        card(readme="---\na: [\n---\ntext")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/home/jane/data/train.jsonl", "train.jsonl"),
        ("/home/jane doe/my data/*.txt", "*.txt"),
        ("/home/jane", "~"),
        ("C:\\Users\\jane\\x.txt", "x.txt"),
        ("~jane/x.txt", "x.txt"),
        ("file:///mnt/jane/x.txt", "x.txt"),
        ("../jane/x.txt", "x.txt"),
        ("/scratch/jane/runs/", "runs/"),
        ("train.py /mnt/jane/a.yaml output=/mnt/jane x/out seed=1", "train.py a.yaml output=out seed=1"),
        ("train.py output=/home/jane seed=1 a.b=/x/y --dry-run", "train.py output=~ seed=1 a.b=y --dry-run"),
        (str(Path.home() / "a" / "b.txt"), "b.txt"),
        ("configs/model/tiny.yaml", "configs/model/tiny.yaml"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("package:brown/data", "package:brown/data"),
        ("stanfordnlp/imdb", "stanfordnlp/imdb"),
        ("x86_64, 2 cores", "x86_64, 2 cores"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_no_path_of_this_machine_travels(before, after):
    assert without_paths({"a": [before]}) == {"a": [after]}


def test_a_record_is_found_only_beside_or_in_a_model_folder(model_folder, tmp_path):
    result, settings = read_run(model_folder)
    assert result["seed"] == 3
    assert settings["data"]["name"] == "bbc_news"
    (tmp_path / "exports").mkdir()
    for out in (tmp_path / "exports" / "model", tmp_path / "exports" / "under another name"):
        assert read_run(export_remote_code(model_folder, out)) == (result, settings)
    other = model_folder.rename(model_folder.with_name("other"))
    assert read_run(other) == (None, None)
