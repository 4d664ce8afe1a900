"""Docs and config headers rot even in admired repositories: a path or command in them that is not there fails here."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig

from decero.cli.main import COMMANDS, Parser
from decero.config.yaml_files import read_yaml
from decero.errors import UserError
from decero.hub.engines import ENGINES, family_in
from decero.hub.families import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
RUNS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in ("model", "accelerate"))
LAUNCHERS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def generator() -> ModuleType:
    """docs/generate_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = generator()
RECIPES = dict(REFERENCE.recipe_classes())
GENERATED = REFERENCE.pages()


def commands(text: str) -> list[list[str]]:
    """Every command line of a text that runs a recipe, launcher and environment taken off."""
    found = []
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
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
    """A command parses as `decero` would parse it, and goes to a family or an engine that there is."""
    parser = Parser(prog="decero", allow_abbrev=False)
    subcommands = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(subcommands)
    arguments = parser.parse_args(words)
    if arguments.command == "recipe" and arguments.words[:1] not in ([], ["--copy"], ["--help"]):
        assert (ROOT / arguments.words[0]).is_file()
        RECIPES[f"{arguments.name}.py"].from_cli(arguments.words)
    assert getattr(arguments, "to", "auto") in {"auto", "remote-code", *(f.name for f in FAMILIES), *ENGINES}


def check(words: list[str], monkeypatch) -> None:
    """A command parses as its recipe would parse it, and its files are there (but those that runs make)."""
    monkeypatch.chdir(ROOT)
    recipe, *rest = words
    assert (ROOT / recipe).is_file(), recipe
    config = RECIPES[Path(recipe).name].from_cli(rest)
    for setting in re.findall(r"[\w./-]*configs/[\w./-]+\.yaml", config.to_yaml()):
        assert (ROOT / setting).is_file(), setting


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_and_command_of_a_page_exists(page, monkeypatch):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.-])((?:configs|recipes|src|tests|docs)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), f"{name_of(page)}: {path}"
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{name_of(page)}: {link}"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for target in re.findall(r"\bmake ([a-z][\w-]*)`", text) + re.findall(r"^make ([\w-]+)", text, flags=re.M):
        assert target in targets, f"{name_of(page)}: make {target}"
    for words in commands(text):
        check(words, monkeypatch)
    for words in own_commands(text):
        check_own(words)


def test_pages_show_every_command_and_every_family():
    shown = {words[0] for page in PAGES for words in own_commands(page.read_text(encoding="utf-8"))}
    subcommands = Parser(prog="decero").add_subparsers()
    for add in COMMANDS:
        add(subcommands)
    assert shown == set(subcommands.choices)
    table = (ROOT / "docs" / "guides" / "hub.md").read_text(encoding="utf-8")
    families = re.findall(r"^\| `(\w+)` \| yes \| yes \|$", table, flags=re.M)
    assert families == list(dict.fromkeys(family.name for family in FAMILIES))


def engines_of_presets() -> dict[str, list[str]]:
    """Preset of ours -> the engines that read it with one head at least."""
    found = {}
    for path in sorted((ROOT / "configs" / "model").glob("*.yaml")):
        fields = read_yaml(path)
        if fields["model_type"].startswith("decero_"):
            config = AutoConfig.for_model(**fields)
            found[path.stem] = [
                name
                for name, engine in ENGINES.items()
                if any(family_in(engine, config, head)[0] for heads in engine.heads.values() for head in heads)
            ]
    return found


def test_the_table_of_presets_and_engines_is_the_exports():
    page = (ROOT / "docs" / "guides" / "export.md").read_text(encoding="utf-8")
    _, title, _, *lines = page[page.index("\n| preset |") :].partition("\n\n")[0].splitlines()
    columns = re.findall(r"`([\w-]+)`", title)
    assert columns == list(ENGINES)
    told = {}
    for line in lines:
        presets, *cells = line.strip("| ").split(" | ")
        assert set(cells) <= {"yes", "–"}
        for pattern in re.findall(r"`([\w*]+)`", presets):
            names = [path.stem for path in (ROOT / "configs" / "model").glob(f"{pattern}.yaml")]
            assert names, pattern
            engines = [name for name, cell in zip(columns, cells, strict=True) if cell == "yes"]
            told |= dict.fromkeys(names, engines)
    assert told == {name: engines for name, engines in engines_of_presets().items() if engines}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    for line in lines:
        assert len(line) <= 120 or line.startswith("|"), line


def test_the_readme_links_to_every_guide():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "guides").glob("*.md"):
        assert f"(docs/guides/{page.name})" in readme, page.name


def test_every_page_is_in_the_sites_navigation():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"(?:: |- )(\S+\.md)$", site, flags=re.M)
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


@pytest.mark.parametrize("page", GENERATED)
def test_the_reference_is_what_the_code_says(page):
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == GENERATED[page], "run: python docs/generate_reference.py"


def test_new_imports_of_the_changelog_exist():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("| old import")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `decero[\w.]+` \| (.*) \|$", changes, flags=re.M)
    assert rows
    for module in re.findall(r"`([\w.]+)`", " ".join(rows)):
        assert importlib.util.find_spec(module) is not None, module


def test_an_experiments_page_says_when_it_was_measured():
    for page in (ROOT / "docs" / "experiments").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if page.name != "index.md":
            assert re.search(r"^\| figures \| commit \| date \| older than \|$", text, flags=re.M), page.name
            assert re.search(r"^\| .* \| `[0-9a-f]{7}`.* \| \d{4}-\d\d-\d\d \|", text, flags=re.M), page.name


def test_an_unknown_flag_or_family_is_noticed():
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
    pages = re.findall(r"docs/experiments/\w+\.md", header)
    assert pages, "says not where it was measured"
    for page in pages:
        assert (ROOT / page).is_file(), page
    found = commands(header)
    assert found, "no command"
    assert all(str(path.relative_to(ROOT)) in words for words in found)
    for words in found:
        check(words, monkeypatch)


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_accelerate_reads_a_launcher_file_and_its_command_exists(path, monkeypatch):
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
    assert len(commands(makefile)) == 5  # three pretrainings


def test_no_figure_was_left_to_be_filled_in():
    for page in [*PAGES, *(ROOT / "configs").rglob("*.yaml")]:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"\b(?:[A-Z]+_(?:TABLE|TIMES?|SENTENCES)|PRELOSS|MINIACC)\b", text), page
