"""The model card states only what was measured, its code loads the model, and it keeps a user's text."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import transformers
from huggingface_hub import ModelCard, metadata_eval_result
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from decero.data.image_tokens import ImageTokens
from decero.errors import UserError
from decero.hub.card import MARK, TEMPLATE, model_card, read_run, without_paths
from decero.hub.card_metadata import HEADS, PEFT_CLASSES, draws
from decero.hub.card_words import WORDS
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


def card(config=CONFIG, result=RESULT, settings=SETTINGS, readme=None, **facts):
    return ModelCard(model_card("me/tiny", config, result, settings, readme, **facts))


def test_results_are_in_the_metadata_and_in_the_text():
    said = card()
    assert [(r.metric_type, r.metric_value, r.dataset_type, r.dataset_split) for r in said.data.eval_results] == [
        ("accuracy", 0.875, "stanfordnlp/imdb", "test"),
        ("f1", 0.8125, "stanfordnlp/imdb", "test"),
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


def test_a_model_of_image_tokens_writes_no_texts(tokenizer, tmp_path):
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    said = ModelCard(model_card("me/tiny", config, None, None, draws=True))
    assert said.data.pipeline_tag is None
    assert "(`decero draw`)" in said.text
    assert "AutoModelForCausalLM" in said.text
    file = {"tokenizer_config.json": tmp_path / "tokenizer_config.json"}
    for made, found in ((tokenizer, False), (deepcopy(tokenizer), True)):
        if found:
            ImageTokens((2, 2), [[0], [255]], []).add_to(made)
        made.save_pretrained(tmp_path)
        assert draws(file) == found
    assert ModelCard(model_card("me/tiny", config, None, None)).data.pipeline_tag == "text-generation"


def test_a_permutation_model_does_not_promise_to_fill():
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    assert ModelCard(model_card("me/tiny", config, None, None, mask="[MASK]")).data.pipeline_tag == "fill-mask"
    config |= {"pretraining_objective": "permutation_lm"}
    said = ModelCard(model_card("me/tiny", config, None, None, mask="[MASK]", languages=["en"]))
    assert said.data.pipeline_tag is None
    assert said.data.to_dict().get("widget") is None
    assert "Only `decero fill` fills holes with it" in said.text
    assert "AutoModelForMaskedLM" in said.text


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
    assert ("```bash\npip install decero\n```" in said.text) == (kind == "decero")
    assert ("carries the code of the model, so decero is not needed" in said.text) == (kind == "remote code")
    assert ("trust_remote_code=True" in code) == (kind == "remote code")
    assert said.data.library_name == ("decero" if kind == "decero" else "transformers")
    scope = {}
    exec(code.replace("me/tiny", str(folder)).replace(", trust_remote_code=True", ""), scope)
    assert scope["tokenizer"]("the bank")["input_ids"]
    if config:
        assert type(scope["model"]).__name__ == config["architectures"][0]


@pytest.mark.parametrize(
    ("model_type", "architecture", "auto"),
    [
        (c.model_type, head.__name__, min((a.__name__ for a, h in heads.items() if h is head), key=list(HEADS).index))
        for c, heads in AUTO_CLASSES.items()
        for head in dict.fromkeys(heads.values())
    ]
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


def check_schema(said):
    """The metadata is what hub-docs/modelcard.md asks for, and huggingface_hub reads back what it wrote."""
    metadata = said.data.to_dict()
    [entry] = metadata["model-index"]
    for result in entry["results"]:
        assert result.keys() == {"task", "dataset", "metrics"}
        assert result["task"].keys() == {"type", "name"}
        assert {"type", "name"} <= result["dataset"].keys() <= {"type", "name", "config", "split", "revision"}
        for metric in result["metrics"]:
            assert {"type", "name", "value"} <= metric.keys() <= {"type", "name", "value", "args"}
            assert isinstance(metric["value"], int | float)
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert (name, results) == (said.data.model_name, said.data.eval_results)
    assert eval_results_to_model_index(name, results) == metadata["model-index"]
    assert ModelCard(str(said)).data.to_dict() == metadata
    return metadata


def test_the_metadata_follows_the_hubs_schema():
    settings = SETTINGS | {"data": SETTINGS["data"] | {"config_name": "plain_text", "revision": "c" * 40}}
    said = card(settings=settings | {"hub": {"license": "mit", "language": ["en"]}})
    metadata = check_schema(said)
    assert (metadata["license"], metadata["language"], metadata["metrics"]) == ("mit", ["en"], ["accuracy", "f1"])
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["widget"] == [{"text": "The room was clean and the staff was friendly."}]
    [result] = metadata["model-index"][0]["results"]
    assert result["task"] == {"type": "text-classification", "name": "Text classification"}
    assert (result["dataset"]["config"], result["dataset"]["revision"]) == ("plain_text", "c" * 40)
    assert result["metrics"][1]["args"] == {"average": "macro"}
    one = metadata_eval_result(
        model_pretty_name="me/tiny", task_pretty_name="Text classification", task_id="text-classification",
        metrics_pretty_name="accuracy", metrics_id="accuracy", metrics_value=0.875,
        dataset_pretty_name="stanfordnlp/imdb", dataset_id="stanfordnlp/imdb", dataset_config="plain_text",
        dataset_split="test", dataset_revision="c" * 40,
    )  # fmt: skip
    theirs = one["model-index"][0]["results"][0]
    assert {part: theirs[part] for part in ("task", "dataset")} == {part: result[part] for part in ("task", "dataset")}
    assert theirs["metrics"][0] == result["metrics"][0] | {"verified": False}


@pytest.mark.parametrize(
    ("metric", "kind"),
    [("bleu", "sacrebleu"), ("help_bleu", "sacrebleu"), ("rougeLsum", "rouge"), ("pearson", "pearsonr"),
     ("eval_loss", "loss"), ("accuracy", "accuracy"), ("f1", "f1")],
)  # fmt: skip
def test_metrics_have_the_names_of_the_hub(metric, kind):
    said = card(result={"metric": {metric: 0.5}})
    assert [(r.metric_type, r.metric_name) for r in said.data.eval_results] == [(kind, metric)]
    check_schema(said)


def test_a_translator_has_the_task_that_its_settings_name():
    t5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    for metric, tag in (("translation", "translation"), ("summarization", "summarization"), ("text", None)):
        said = card(t5, settings=SETTINGS | {"generation": {"metric": metric}}, languages=["es"])
        assert said.data.pipeline_tag == tag
        widget = said.data.to_dict().get("widget")
        assert (widget is not None) == (tag == "summarization")
        check_schema(said)


def test_a_spanish_model_gets_a_spanish_card():
    masked = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    settings = SETTINGS | {"hub": {"language": ["es"], "license": "cc-by-4.0"}}
    said = card(masked, settings=settings, mask="[MASK]")
    assert said.data.to_dict()["widget"] == [{"text": "París es la [MASK] de Francia."}]
    assert said.data.language == ["es"]
    for words in (
        "## Cómo se carga", "## Qué se midió", "| métrica | test |", "Una ejecución, semilla 7",
        "## Licencia\n\ncc-by-4.0",
        "Un modelo `bert` (`BertForMaskedLM`), ajustado a partir de `FacebookAI/roberta-base`.", "4\u00a0321 ejemplos",
        "Rellenar tokens enmascarados", "61 s en 2 × cuda", "Su registro completo: [run/result.json](run/result.json).",
    ):  # fmt: skip
        assert words in said.text, words
    assert not re.search(r"\b(the|was|and|not)\b", said.text.replace(MARK, ""))
    check_schema(said)
    assert "## What was measured" in card(masked, settings=settings, languages=["en", "es"]).text, (
        "the option goes first"
    )
    assert card(masked, None, None, mask="[MASK]").data.to_dict().get("widget") is None, "its language is not known"


def test_every_word_of_a_card_is_there_in_both_languages():
    for name, (english, spanish) in WORDS.items():
        assert english, name
        assert spanish, name
        fields = [sorted(re.findall(r"{(\w+)}", text)) for text in (english, spanish)]
        assert fields[0] == fields[1], name
    assert set(HEADS) <= set(WORDS)
    template = TEMPLATE.read_text(encoding="utf-8")
    assert set(re.findall(r"words\.(\w+)", template)) <= set(WORDS)


def test_options_of_a_push_go_before_a_users_metadata():
    mine = "---\nlicense: mit\nlanguage: fr\n---\n\n# My words\n"
    assert (card(readme=mine).data.license, card(readme=mine).data.language) == ("mit", "fr")
    said = card(readme=mine, license="gpl-3.0", languages=["es"])
    assert (said.data.license, said.data.language, said.text) == ("gpl-3.0", ["es"], "\n# My words\n")
    first = card(languages=["es"], license="mit")
    again = card(result=RESULT | {"metric": {"accuracy": 0.5}}, readme=str(first))
    assert (again.data.license, again.data.language) == ("mit", ["es"]), "an earlier push said so"
    assert "## Qué se midió" in again.text
    for facts in ({"license": "apache"}, {"languages": ["English"]}):
        with pytest.raises(UserError, match=r"the license or the language of the model: '.*did you mean"):
            card(**facts)


def test_a_run_of_a_comparison_says_what_its_seeds_gave():
    compared = {"seeds": [7, 8, 9], "by": "validation", "metric": "accuracy", "mean": 0.87, "sd": 0.02}
    said = card(result=RESULT | {"compared": compared}).text
    assert (
        "with the seeds 7, 8, 9 and chose it by its score on validation. Over these seeds, accuracy is 0.8700" in said
    )
    assert "± 0.0200" in said
    assert "was not measured.\n" not in said.partition("## Training data")[0]
    assert "One run, seed 7" in card(result=RESULT | {"compared": {"seeds": [7]}}).text, "a damaged record"


@pytest.mark.parametrize(("model_type", "architecture"), [
    ("vit", "ViTForImageClassification"), ("decero_vision", "DeceroVisionForSemanticSegmentation"),
    ("decero_vision", "DeceroVisionForMaskedImageModeling"), ("detr", "DetrForObjectDetection"),
    ("decero_diffusion", "DeceroDiffusionModel"),
])  # fmt: skip
def test_a_model_of_pictures_is_shown_with_its_image_processor(model_type, architecture):
    said = card({"model_type": model_type, "architectures": [architecture]}, {}, {}).text
    assert 'processor = AutoImageProcessor.from_pretrained("me/tiny")' in said
    assert "AutoTokenizer" not in said
    assert re.search(r"^from transformers import AutoImageProcessor, AutoModel\w*$", said, re.MULTILINE)


def test_pictures_without_a_head_are_read_by_an_image_processor():
    said = card({"model_type": "vit", "architectures": ["ViTModel"], "image_size": 224}, {}, {})
    assert said.data.pipeline_tag == "image-feature-extraction"
    assert 'AutoImageProcessor.from_pretrained("me/tiny")' in said.text
    assert "Turning pictures into vectors" in said.text


def test_an_adapter_is_loaded_by_a_class_that_peft_has():
    config = {"model_type": "bert", "architectures": ["BertForMultipleChoice"]}
    said = card(config, adapts="google-bert/bert-base-uncased").text
    assert 'model = AutoModelForMultipleChoice.from_pretrained("google-bert/bert-base-uncased")' in said
    assert 'model = PeftModel.from_pretrained(model, "me/tiny")' in said
    peft = pytest.importorskip("peft")
    for name in PEFT_CLASSES - {"AutoModel"}:
        assert hasattr(peft, name.replace("AutoModel", "AutoPeftModel"))
