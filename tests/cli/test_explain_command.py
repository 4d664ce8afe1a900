"""decero explain: pages and pictures from the shell, and one line for each mistake."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from decero.cli.main import main

TEXT = "the bank rose on the river"
SIZES = {"hidden_size": 28, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 29}


@pytest.fixture(scope="session")
def models(tokenizer, sentinel_tokenizer, tmp_path_factory):
    """Folders of a tiny BERT, Llama and T5 with a tokenizer each."""
    torch.manual_seed(0)
    vocab = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    sizes = {"vocab_size": len(sentinel_tokenizer), "d_model": 22, "d_kv": 11, "d_ff": 29}
    sizes |= {"num_layers": 2, "num_heads": 2}
    built = {
        "bert": (BertForMaskedLM(BertConfig(**SIZES, **vocab)), tokenizer),
        "llama": (LlamaForCausalLM(LlamaConfig(**SIZES, **vocab)), tokenizer),
        "t5": (T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), sentinel_tokenizer),
    }
    root = tmp_path_factory.mktemp("models")
    for name, (model, words) in built.items():
        model.save_pretrained(root / name)
        words.save_pretrained(root / name)
    return SimpleNamespace(**{name: str(root / name) for name in built})


def data_of(path):
    html = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', html, flags=re.S)[1])


def test_a_text_becomes_one_page_with_its_faithfulness(models, tmp_path, capsys):
    main(["explain", models.bert, TEXT, "--out", f"{tmp_path}/page.html", "--layer", "2", "--head", "1"])
    data = data_of(tmp_path / "page.html")
    assert [len(each["tiles"]) for each in data["attention"]] == [3]
    assert data["attention"][0]["keys"][0] == "[CLS]"
    assert data["start"] == ["self", 2, 1]
    assert "leave-one-out" in (tmp_path / "page.html").read_text(encoding="utf-8").lower()
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path}/page.html"


def test_every_view_of_a_decoder(models, tmp_path):
    views = ["attention", "lens", "rollout", "ablation", "positions", "attribution"]
    options = [word for view in views for word in ("--view", view)]
    main(["explain", models.llama, TEXT, "--out", f"{tmp_path}/page.html", "--language", "es", *options])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', html) == views
    titles = [each["title"] for each in data_of(tmp_path / "page.html")["maps"]]
    assert {"Lente de logits", "Rollout de la atención", "Cambio de la pérdida sin la cabeza"} <= set(titles)
    assert 'class="passage"' in html


def test_a_translation_has_three_kinds_and_aligned_words(models, tmp_path):
    target = "the river rose"
    main(["explain", models.t5, TEXT, "--target", target, "--out", f"{tmp_path}/p.html", "--svg", f"{tmp_path}/p.svg"])
    data = data_of(tmp_path / "p.html")
    assert {each["kind"] for each in data["attention"]} == {"self", "causal", "cross"}
    [words] = data["maps"]
    assert (words["rows"], words["columns"]) == (target.split(), TEXT.split())
    assert "cross-attention" in (tmp_path / "p.svg").read_text(encoding="utf-8")


def test_a_file_becomes_a_page_a_line_and_an_index(models, tmp_path):
    (tmp_path / "lines.txt").write_text(f"{TEXT}\n\nthe river <b>\n")
    main(["explain", models.bert, f"{tmp_path}/lines.txt", "--out", f"{tmp_path}/pages", "--view", "positions"])
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["0001.html", "0003.html", "index.html"]
    index = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<li><a href="(\d+.html)"', index) == ["0001.html", "0003.html"]


def test_the_only_token_of_a_decoder_cannot_be_left_out(models, tmp_path):
    main(
        ["explain", models.llama, "bank", "--out", f"{tmp_path}/page.html", "--view", "attention", "--view", "rollout"]
    )
    assert "nothing was measured" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_scores_that_do_not_sum_say_so(models, tmp_path, monkeypatch):
    monkeypatch.setattr("decero.explain.attribution.TOLERANCE", -1)
    main(["explain", models.llama, TEXT, "--out", f"{tmp_path}/page.html", "--view", "attribution"])
    assert "Do not trust these scores" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_pictures_of_a_head_and_of_a_view(models, tmp_path):
    main(["explain", models.bert, TEXT, "--svg", f"{tmp_path}/a.svg", "--layer", "1"])
    main(["explain", models.bert, TEXT, "--png", f"{tmp_path}/b.PNG", "--layer", "1", "--head", "0"])
    main(["explain", models.bert, TEXT, "--svg", f"{tmp_path}/lens.svg", "--view", "lens"])
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["a.svg", "b.PNG", *(f"lens-{i}.svg" for i in (2, 3, 4, 5)), "lens.svg"]
    assert (tmp_path / "b.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([TEXT], "nothing to write: give --out page.html, --png FILE or --svg FILE"),
        ([TEXT, "--out", "no/page.html"], "--out no/page.html: there is no folder no; make it first"),
        ([TEXT, "--out", "page.pdf"], "--out page.pdf: give a name that ends in .html, or a folder"),
        ([TEXT, "--png", "heads.gif"], "--png heads.gif: give a name that ends in .png"),
        ([TEXT, "--svg", "heads.png"], "--svg heads.png: give a name that ends in .svg"),
        ([TEXT, "--png", "folder.png"], "--png folder.png: this is a folder; give a file"),
        ([TEXT, "--png", "a.png", "--head", "1"], "--head 1 needs --layer L"),
        ([TEXT, "--png", "a.png", "--layer", "-1"], "-1 is not a whole number from 0 on"),
        ([TEXT, "--png", "a.png", "--layer", "3"], "--layer 3: there are 3 layers of self attention, from 0 to 2"),
        ([TEXT, "--out", "a.html", "--layer", "0", "--head", "2"], "--head 2: there are 2 heads of self"),
        ([TEXT, "--png", "a.png", "--kind", "cross"], "--kind cross: this bert model has self attention only"),
        ([TEXT, "--png", "a.png", "--view", "lens", "--layer", "0"], "--layer has no effect on --view lens"),
        ([TEXT, "--png", "a.png", "--view", "lens", "--view", "rollout"], "draw one view; 2 were given"),
        ([TEXT, "--out", "a.html", "--view", "heads"], "invalid choice: 'heads'"),
        ([TEXT, "--out", "a.html", "--target", "x"], "has no decoder beside an encoder: give no target"),
        (["  ", "--out", "a.html"], "the text is empty"),
        (["empty.txt", "--out", "a.html"], "empty.txt: there is no line with a text"),
        (["latin.txt", "--out", "a.html"], "latin.txt: line 1 is not UTF-8"),
        (["lines.txt", "--out", "a.html"], "lines.txt: 2 lines, but --out is for one text; give a folder"),
        (["lines.txt", "--out", "pages", "--png", "a.png"], "lines.txt: 2 lines, but --png is for one text"),
        (["lines.txt", "--out", "pages"], "line 2: the text has"),
        ([TEXT, "--out", "new", "--png", "a.png", "--view", "positions", "--target", "x"], "give no target"),
        (["\udcff", "--out", "a.html"], "line 1: the text or the target is not UTF-8"),
        ([TEXT * 30, "--out", "a.html"], "but the model reads 64; shorten it"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_line(models, options, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "lines.txt").write_text(f"{TEXT}\n{TEXT * 30}\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        main(["explain", models.bert, *options])
    error = capfd.readouterr().err
    assert end.value.code == 2
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
