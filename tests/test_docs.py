"""Docs and config headers rot even in admired repositories: a path or command in them that is not there fails here."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from decero.cli.main import COMMANDS, Parser
from decero.config.run_config import RunConfig
from decero.config.yaml_files import read_yaml
from decero.errors import UserError
from decero.hub.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in ("model", "accelerate"))
LAUNCHERS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def recipe_config(name: str) -> type[RunConfig]:
    """The settings class that a recipe parses its command line with: `config = NAME.from_cli()`."""
    text = (ROOT / "recipes" / name).read_text(encoding="utf-8")
    parsed = re.search(r"config = (\w+)\.from_cli\(\)", text)
    assert parsed is not None
    module = re.search(rf"^from (decero\.config\.\w+) import .*\b{parsed[1]}\b", text, flags=re.M)
    assert module is not None
    return getattr(importlib.import_module(module[1]), parsed[1])


def commands(text: str) -> list[list[str]]:
    """Every command line of a text that runs a recipe, launcher and environment taken off."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.search(r"(recipes/\w+\.py .*)", line.strip("# `"))
        if match and re.search(r"(python3?|accelerate launch|torchrun|\$\(RUN\))\b.*recipes/|^\s*\$\(RUN\)", line):
            words = shlex.split(re.split(r"  +|\s#|`| \[", match.group(1))[0])
            found.append(words)
    return found


def own_commands(text: str) -> list[list[str]]:
    """Every command line that begins with `decero`, in a block of shell or in backticks, without that word."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S))
    found = re.findall(r"^decero (.*)", blocks, flags=re.M) + re.findall(r"`decero ([^`]+)`", text)
    return [shlex.split(line, comments=True) for line in found]


def check_own(words: list[str]) -> None:
    """A command parses as `decero` would parse it, and goes to a family that there is."""
    parser = Parser(prog="decero", allow_abbrev=False)
    subcommands = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(subcommands)
    arguments = parser.parse_args(words)
    assert getattr(arguments, "to", "auto") in {"auto", "remote-code", *(family.name for family in FAMILIES)}


def check(words: list[str], monkeypatch) -> None:
    """A command parses as its recipe would parse it, and its files are there (but those that runs make)."""
    monkeypatch.chdir(ROOT)
    recipe, *rest = words
    assert (ROOT / recipe).is_file(), recipe
    config = recipe_config(Path(recipe).name).from_cli(rest)
    for setting in re.findall(r"[\w./-]*configs/[\w./-]+\.yaml", config.to_yaml()):
        assert (ROOT / setting).is_file(), setting


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_path_and_command_of_a_page_exists(page, monkeypatch):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.-])((?:configs|recipes|src|tests|docs)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for target in re.findall(r"\bmake ([a-z][\w-]*)`", text) + re.findall(r"^make ([\w-]+)", text, flags=re.M):
        assert target in targets, f"{page.name}: make {target}"
    for words in commands(text):
        check(words, monkeypatch)
    for words in own_commands(text):
        check_own(words)


def test_the_readme_shows_every_command_and_every_family():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    subcommands = Parser(prog="decero").add_subparsers()
    for add in COMMANDS:
        add(subcommands)
    assert {words[0] for words in own_commands(text)} == set(subcommands.choices)
    line = re.search(r"^Both ways for (.*?)\.", text, flags=re.M | re.S)
    assert line is not None
    assert re.findall(r"`(\w+)`", line.group(1)) == list(dict.fromkeys(family.name for family in FAMILIES))


def test_a_command_with_a_flag_or_family_that_is_not_there_is_noticed():
    check_own(["export", "model", "out", "--to", "bert"])
    with pytest.raises(UserError, match="--dry"):
        check_own(["push", "model", "me/model", "--dry"])
    with pytest.raises(AssertionError):
        check_own(["export", "model", "out", "--to", "bertha"])


@pytest.mark.parametrize("path", RUNS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_runs_header_says_source_command_time_and_number(path, monkeypatch):
    text = path.read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert text.startswith("#"), "no header"
    assert "source:" in header
    assert re.search(r"\d+ (s|min|h)\b", header), "no time"
    assert "docs/experiments.md" in header, "says not where it was measured"
    found = commands(header)
    assert found, "no command"
    assert all(str(path.relative_to(ROOT)) in words for words in found)
    for words in found:
        check(words, monkeypatch)


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_a_launcher_file_is_one_that_accelerate_reads_and_its_command_exists(path, monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))
    found = commands(path.read_text(encoding="utf-8"))
    assert found
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text(encoding="utf-8")
    for words in found:
        check(words, monkeypatch)


def test_every_recipe_is_named_by_the_header_of_a_config():
    headers = "\n".join(path.read_text(encoding="utf-8") for path in RUNS)
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert f"recipes/{recipe.name}" in headers, recipe.name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_a_recipe_shows_a_command_that_there_is(path, monkeypatch):
    found = commands((path.read_text(encoding="utf-8")).split('"""')[1])
    assert [words[0] for words in found] == [f"recipes/{path.name}"]
    for words in found:
        check(words, monkeypatch)


def test_every_output_is_a_folder_of_its_own():
    outputs = [read_yaml(path)["output"] for path in RUNS]
    assert len(set(outputs)) == len(outputs)
    assert all(output.startswith("runs/") for output in outputs)


def test_the_quickstart_runs_the_configs_that_the_readme_shows():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in commands(makefile):
        assert " ".join(words[:2]) in readme
    assert len(commands(makefile)) == 3


def test_no_figure_was_left_to_be_filled_in():
    for page in [*PAGES, *(ROOT / "configs").rglob("*.yaml")]:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"\b(?:[A-Z]+_(?:TABLE|TIMES?|SENTENCES)|PRELOSS|MINIACC)\b", text), page
