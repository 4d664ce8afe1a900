"""docs/architecture.md walks from equations to lines: each line it quotes, name it gives, slot it states is there."""

import ast
import re
import textwrap
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from transformers import AutoConfig

import decero.models  # noqa: F401  (registers our model types)
from decero.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n# (\S+): (\S+)\n(.*?)^```$", PAGE, flags=re.M | re.S)
LINKS = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/.]+\.py)\)", PAGE)

ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "decero").glob("*/__init__.py"))

# What a preset states besides the slots of a shape: how large, how long, how regular, which tokens.
SIZES = re.compile(
    r"vocab_size|hidden_size|(decoder_)?intermediate_size|head_dim|decoder_layers|num_(hidden_layers|attention_heads)|"
    r"max_position_embeddings|rope_theta|layer_types|layer_norm_eps|initializer_range|classifier_pooling|"
    r".*_token_id|.*dropout(_prob)?"
)


@cache
def parsed(path: str) -> tuple[str, ast.Module]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return text, ast.parse(text)


def definition(path: str, name: str) -> str | None:
    """The source of `function`, `Class` or `Class.method` in a file, or None."""
    text, node = parsed(path)
    for part in name.split("."):
        found = [n for n in getattr(node, "body", []) if getattr(n, "name", None) == part]
        if not found:
            return None
        node = found[0]
    return ast.get_source_segment(text, node)


def unindented(text: str) -> list[str]:
    """Lines without the indentation that all of them share; the first of a function has lost its own."""
    return textwrap.dedent(text).strip("\n").splitlines()


def stands_in(quoted: str, source: str) -> bool:
    """Whether the lines stand in the source one after the other, indented alike."""
    wanted, lines = unindented(quoted), source.splitlines()
    return any(unindented("\n".join(lines[i : i + len(wanted)])) == wanted for i in range(len(lines)))


@pytest.mark.parametrize(("path", "name", "quoted"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_what_the_page_quotes_stands_there_line_for_line(path, name, quoted):
    source = definition(path, name)
    assert source is not None, f"{path} defines no {name}"
    assert stands_in(quoted, source), f"{path}: {name} no longer has these lines:\n{quoted}"


def test_every_block_of_code_says_where_it_is_from():
    assert len(BLOCKS) == PAGE.count("```python") >= 15


def test_a_changed_or_reordered_line_is_noticed():
    source = "def f(x):\n    a = 1\n    if x:\n        b = 2\n    return a"
    assert stands_in("a = 1\nif x:\n    b = 2", source)
    assert not stands_in("a = 2", source)
    assert not stands_in("if x:\nb = 2", source)
    assert not stands_in("a = 1\nreturn a", source)


@pytest.mark.parametrize(("name", "path"), sorted(set(LINKS)))
def test_every_name_that_links_to_a_file_is_defined_in_it(name, path):
    assert definition(path, name) is not None


def test_every_slip_names_a_check():
    slips = PAGE.split("## Common mistakes")[1].split("\n## ")[0]
    items = re.split(r"^- ", slips, flags=re.M)[1:]
    assert len(items) >= 18
    for item in items:
        assert re.search(r"\[`test_\w+`\]\(\.\./tests/", item), item


def test_every_name_in_backticks_exists():
    known = {path.stem for path in (ROOT / "configs" / "model").glob("*.yaml")} | {"python"}
    known |= {path.stem for path in (ROOT / "src" / "decero").iterdir()}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for attribute in ("name", "id", "attr", "arg", "value"):
                word = getattr(node, attribute, None)
                known |= set(re.findall(r"\w+", word)) if isinstance(word, str) else set()
    known |= set(re.findall(r"[\w-]+", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    for word in re.findall(r"(?<!\[)`([A-Za-z_][\w.]*)`", PAGE):
        assert set(word.split(".")) <= known, word


# --- the table of rooms


def room_rows() -> dict[str, list[str]]:
    """room -> the rooms that it may import, as the page states them."""
    table = PAGE.split("## Rooms")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", table, flags=re.M)
    return {room: sorted(re.findall(r"`(\w+)`", cell)) for room, cell in rows}


def test_every_room_has_a_row():
    assert sorted(room_rows()) == ROOMS


def test_rows_state_the_imports_that_are_tested():
    text = (ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")
    [allowed] = [
        n.value for n in ast.parse(text).body if getattr(getattr(n, "targets", [None])[0], "id", "") == "ALLOWED"
    ]
    stated = room_rows()
    for key, value in zip(allowed.keys, allowed.values, strict=True):
        rooms = sorted(e.value for e in getattr(value, "elts", []))
        assert stated[key.value] == rooms, key.value


# --- the table of slots


def slot_rows() -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """preset -> (its columns, what it has besides), as the page states them."""
    table = PAGE.split("### Which slots make which model")[1].split("\n## ")[0]
    header, _, *lines = [line.strip("| \n").split("|") for line in table.splitlines() if line.startswith("|")]
    columns = [re.findall(r"`(\w+)`", cell) for cell in header[1:-1]]
    read = YAML(typ="safe").load
    rows = {}
    for first, *cells in lines:
        stated: dict[str, object] = {}
        for names, cell in zip(columns, cells, strict=False):
            values = [{"yes": True, "no": False}.get(word, word) for word in re.findall(r"\w+", cell)]
            stated |= dict(zip(names, values, strict=True))
        besides = {
            name: read(value) for cell in cells[len(columns) :] for name, value in re.findall(r"`(\w+): (\w+)`", cell)
        }
        rows[re.findall(r"`(\w+)`", first)[0]] = stated, besides
    return rows


def test_the_table_has_the_classics():
    presets = "vaswani2017_base bert_base roberta_base modernbert_base gpt2 smollm2_135m t5_small t5_v1_1_small marian"
    assert list(slot_rows()) == presets.split()


@pytest.mark.parametrize("preset", slot_rows())
def test_a_row_of_slots_is_what_the_preset_makes(preset):
    config = AutoConfig.for_model(**read_yaml(ROOT / "configs" / "model" / f"{preset}.yaml"))
    stated, besides = slot_rows()[preset]
    assert {name: getattr(config, name) for name in stated} == stated
    assert {name: getattr(config, name) for name in besides} == besides
    # Nothing is left out: whatever else the preset turns from its default is a size.
    heads = {"num_attention_heads": config.num_attention_heads, "head_dim": config.head_dim}
    default = AutoConfig.for_model(config.model_type, **heads)
    for field in fields(config):
        if field.name in stated.keys() | besides.keys() or SIZES.fullmatch(field.name):
            continue
        turned = getattr(config, field.name) != getattr(default, field.name)
        follows = field.name == "final_norm"  # from norm_placement
        assert follows or not turned, f"{preset}: {field.name} is {getattr(config, field.name)}, and the page is silent"
