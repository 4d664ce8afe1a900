"""Who may import whom, and how long a room may be: docs/architecture.md says why."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "decero"
FLOOR = {"cores", "errors", "files", "formatting"}
ALLOWED = {  # room -> the rooms that it may import, besides itself and FLOOR
    "models": set(),
    "config": set(),
    "data": set(),
    "evaluation": set(),
    "hub": {"models", "execution", "config"},
    "execution": {"models", "data", "config"},
    "training": {"execution", "models", "data", "config"},
    "inference": {"execution", "models", "data"},
    "planning": {"training", "execution", "models", "data", "config"},
    "tasks": {"planning", "training", "inference", "execution", "hub", "evaluation", "models", "data", "config"},
    "comparison": {"tasks", "planning", "training", "execution", "evaluation", "data", "config"},
    "explain": {"inference", "execution", "evaluation", "models", "data"},
    "demo": {"explain", "inference", "execution", "models", "data"},
    "doctor": {"tasks", "training", "execution", "data", "config"},
    "benchmark": {
        "explain",
        "tasks",
        "planning",
        "training",
        "inference",
        "execution",
        "hub",
        "evaluation",
        "models",
        "data",
        "config",
    },
}


class Facts(NamedTuple):
    """What a file imports, and the names of its classes (not of inner ones) and of its functions."""

    imports: list[ast.Import | ast.ImportFrom]
    classes: list[str]
    functions: list[str]


@cache
def facts(path: Path) -> Facts:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    return Facts(
        [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)],
        [node.name for node in tree.body if isinstance(node, ast.ClassDef)],
        [node.name for node in nodes if isinstance(node, ast.FunctionDef)],
    )


def imports(path: Path) -> set[str]:
    """The rooms of decero that a file imports by absolute name."""
    rooms = set()
    for node in facts(path).imports:
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("decero.")}
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room):
    files = sorted((SOURCE / room).rglob("*.py"))
    assert files
    for path in files:
        extra = imports(path) - ALLOWED[room] - {room} - (FLOOR if room != "models" else set())
        assert not extra, f"{path} imports {extra}"


def test_only_models_has_relative_imports_and_no_others_of_ours():
    for path in SOURCE.rglob("*.py"):
        levels = {n.level for n in facts(path).imports if isinstance(n, ast.ImportFrom)}
        assert levels <= ({0, 1} if path.parent.name == "models" else {0}), path


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [
        ("src/decero/models/modeling_*.py", 300),
        ("src/decero/models/[!m]*.py", 200),
        ("src/decero/training/loop.py", 200),
        ("recipes/*.py", 60),
        ("src/decero/**/*.py", 300),
    ],
)
def test_rooms_stay_readable(pattern, limit):
    files = sorted(ROOT.glob(pattern))
    assert files
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_recipes_are_scripts_that_nothing_imports():
    assert not (ROOT / "recipes" / "__init__.py").exists()
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        modules = [n.module or "" for n in facts(path).imports if isinstance(n, ast.ImportFrom)]
        assert not any(m.split(".")[0] == "recipes" for m in modules), path


def test_nothing_loads_a_pickle():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text, path
        assert "import pickle" not in text, path


def test_no_two_rooms_have_a_module_or_class_of_one_name():
    places: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if path.stem.startswith("__") or "metric_modules" in path.parts:
            continue
        room = path.relative_to(SOURCE).parts[0]
        classes = facts(path).classes
        for name in [path.stem, *(name for name in classes if not name.startswith("_"))]:
            places.setdefault(name, set()).add(room)
    twice = {name: sorted(rooms) for name, rooms in places.items() if len(rooms) > 1}
    assert not twice


def test_the_engine_has_at_most_15_modules():
    assert len([path for path in (SOURCE / "training").glob("*.py") if path.stem != "__init__"]) <= 15


def test_names_of_tests_have_at_most_60_characters():
    for path in (ROOT / "tests").rglob("test_*.py"):
        long = [name for name in facts(path).functions if name.startswith("test_") and len(name) > 60]
        assert not long, f"{path}: {long}"
