"""A written Space is whole: page, packages, front matter, model and the part of decero that it needs."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import transformers as hf

from decero.cli.main import main
from decero.demo.space import ROOMS, SOURCE, write_space
from decero.errors import UserError

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="gradio is not installed")
SIZES = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("space") / "tiny_fill" / "model"
    hf.BertForMaskedLM(hf.BertConfig(**SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    return folder


def test_a_space_has_all_that_the_hub_asks_for(model, tmp_path, capsys):
    folder = tmp_path / "new" / "space"
    main(["demo", str(model), "--write-space", str(folder)])
    assert f"python {folder}/app.py" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"app.py", "requirements.txt", "README.md", ".gitattributes", "decero", "model"}
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert settings["title"] == "tiny_fill"
    assert re.fullmatch(r"'?\d+\.\d+\.\d+'?", settings["sdk_version"])
    assert "model/" in body
    packages = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in packages)
    assert {"torch", "transformers", "tokenizers"} <= {line.split("==")[0] for line in packages}
    assert {path.name for path in (folder / "model").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    ast.parse((folder / "app.py").read_text(encoding="utf-8"))
    assert not list(folder.rglob("__pycache__"))


def test_a_space_holds_every_room_that_its_code_imports(model, tmp_path):
    write_space(str(model), tmp_path / "space")
    there = {path.stem for path in (tmp_path / "space" / "decero").iterdir()}
    for path in (tmp_path / "space" / "decero").rglob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) decero\.(\w+)", path.read_text(encoding="utf-8"), flags=re.M):
            assert name in there, f"{path.name} imports decero.{name}"
    assert {path.name for path in (tmp_path / "space" / "decero" / "explain").glob("page.*")} == {
        path.name for path in (SOURCE / "explain").glob("page.*")
    }
    assert there >= set(ROOMS)


def test_a_space_is_refused_where_something_is(model, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="already exists and is not empty"):
            write_space(str(model), place)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_becomes_a_space(model, tmp_path):
    (tmp_path / "space").mkdir()
    write_space(str(model), tmp_path / "space")
    assert (tmp_path / "space" / "app.py").is_file()


def test_nothing_is_half_written(model, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        write_space(str(model), tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_a_model_on_the_hub_is_named(model, tmp_path, monkeypatch):
    from decero.execution import model_folder

    find = model_folder.find
    monkeypatch.setattr(
        model_folder, "find", lambda name, *rest, **how: model if str(name) == "me/tiny" else find(name, *rest, **how)
    )
    write_space("me/tiny", tmp_path / "space", bf16=True)
    assert not (tmp_path / "space" / "model").exists()
    assert "build_app('me/tiny', bf16=True)" in (tmp_path / "space" / "app.py").read_text()
    assert "models:\n- me/tiny\n" in (tmp_path / "space" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODEL", "--write-space", "x", "--port", "80"], "--port has no effect with --write-space"),
        (["MODEL", "--port", "99999"], "99999 is no port"),
        (["/no/such/model"], "no such folder"),
    ],
)
def test_demo_refuses_in_one_line(model, words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *(str(model) if word == "MODEL" else word for word in words)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not Path("x").exists()
