"""`decero recipe` lists, copies and runs what came with decero, from any folder."""

import re
import sys
from pathlib import Path

import pytest

from decero.cli.main import main
from decero.config.pretraining import PretrainMLM
from decero.files import shipped

RECIPES = sorted(path.stem for path in shipped("recipes").glob("*.py"))
QUICKSTART = "configs/pretrain/mlm_quickstart.yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["decero"])


def refused(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    return said


def test_recipes_and_their_configs_are_listed(capsys):
    main(["recipe"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line][:-1] == RECIPES
    for name in RECIPES:
        main(["recipe", name])
        listed = re.findall(r"^(configs/\S+)", capsys.readouterr().out, flags=re.M)
        assert listed, name
        assert all(shipped(each).is_file() for each in listed)


def test_a_copy_holds_every_config_that_its_files_name(tmp_path, capsys):
    for name in RECIPES:
        main(["recipe", name, "--copy", name])
        copied = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert tmp_path / name / "recipes" / f"{name}.py" in copied
        assert tmp_path / name / "configs" / "accelerate" / "ddp.yaml" in copied
        for path in copied:
            original = shipped(path.relative_to(tmp_path / name))
            assert path.read_bytes() == original.read_bytes()
            launcher = path.parent.name == "accelerate"
            for named in [] if launcher else re.findall(r"(?<![\w/.-])configs/[\w/.-]+\.yaml", path.read_text()):
                assert (tmp_path / name / named).is_file() or not shipped(named).is_file(), f"{path}: {named}"
            if path.suffix == ".yaml" and path.parent.name not in ("model", "accelerate"):
                for recipe in re.findall(r"^#.*?\b(recipes/\w+\.py)", path.read_text(), flags=re.M):
                    assert (tmp_path / name / recipe).is_file(), f"{path}: {recipe}"
    assert "run it: cd train_tokenizer && python recipes/train_tokenizer.py configs/tok" in capsys.readouterr().out
    main(["recipe", "--copy=pretrain_mlm", "pretrain_mlm"])  # again, and the option first: nothing to write


def test_a_copy_overwrites_nothing(tmp_path, capsys):
    mine = tmp_path / "mine" / QUICKSTART
    mine.parent.mkdir(parents=True)
    mine.write_text("output: mine\n")
    said = refused(["recipe", "pretrain_mlm", "--copy", "mine"], capsys)
    assert f"mine/{QUICKSTART}: is there already, and differs" in said
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "output: mine\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain_mml"], "unknown recipe pretrain_mml; did you mean pretrain_mlm?"),
        (["frobnicate"], "unknown recipe frobnicate (all: decero recipe)"),
        (["pretrain_mlm", "--copy"], "decero recipe pretrain_mlm --copy FOLDER: give one folder"),
        (["pretrain_mlm", "--copy", "a", "b"], "give one folder, and nothing else"),
        (["--copy", "a"], "decero recipe --copy a: give the name of a recipe, too"),
        (["pretrain_mlm", "configs/pretrain/mlm_quikstart.yaml"], f"no such file; did you mean {QUICKSTART}?"),
        (["pretrain_mlm", "configs/pretrian/a.yaml"], "configs/pretrian/a.yaml: no such file"),
        (["pretrain_mlm", QUICKSTART, "optim.learning_ratee=1"], "did you mean optim.learning_rate?"),
        (["pretrain_mlm", QUICKSTART, "--resum"], "did you mean --resume?"),
    ],
)
def test_a_mistake_is_one_line_with_the_mend(words, said, capsys):
    assert said in refused(["recipe", *words], capsys)


def test_help_of_a_recipe_is_reached_through_the_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["recipe", "recipes/pretrain_mlm.py", "--help"])
    assert not end.value.code
    assert capsys.readouterr().out.startswith("pretrain_mlm.py CONFIG.yaml [key.sub=value ...]")


def test_a_file_of_the_working_folder_goes_first(tmp_path):
    assert PretrainMLM.load(QUICKSTART).output == "runs/quickstart/pretrain"
    own = tmp_path / QUICKSTART
    own.parent.mkdir(parents=True)
    own.write_text(shipped(QUICKSTART).read_text().replace("runs/quickstart/pretrain", "runs/own"))
    assert PretrainMLM.load(QUICKSTART).output == "runs/own"
    assert Path(PretrainMLM.load(QUICKSTART).model.config) == Path("configs/model/modernbert_tiny.yaml")
