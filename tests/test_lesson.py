"""The lesson: every block of code runs and prints what the page says, every answer is right, both languages agree.

A page runs from top to bottom in one namespace. `<!-- slow -->` before a block leaves it to `make test-slow`.
"""

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
ENGLISH, SPANISH = ROOT / "docs" / "lesson", ROOT / "docs" / "es" / "leccion"
BOOKS = {folder: sorted(folder.glob("[01]*.md")) for folder in (ENGLISH, SPANISH)}
PAGES = [*BOOKS[ENGLISH], *BOOKS[SPANISH], ENGLISH / "index.md", SPANISH / "index.md"]
PAIRS = [*zip(*BOOKS.values(), strict=True), (ENGLISH / "index.md", SPANISH / "index.md")]
BLOCK = re.compile(r"(<!-- slow -->\n)?^```(\w+)\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", flags=re.M | re.S)
EXERCISE = re.compile(r"^\*\*(\d)\.\*\* [^\n]+\n<details markdown=\"1\"><summary>.*?</details>$", flags=re.M | re.S)
LINK = re.compile(r"\[([^\]]+)\]\(((?!http|#)[^)]+)\)")


@dataclass
class Block:
    """A block of code on a page: `printed` is what stands below it, `answer` the text of the answer that it is in."""

    kind: str
    code: str
    printed: str
    slow: bool
    line: int
    answer: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    answers = [match.span() for match in re.finditer(r"</summary>.*?</details>", text, flags=re.S)]
    found = []
    for match in BLOCK.finditer(text):
        inside = [text[start : match.start()] for start, end in answers if start < match.start() < end]
        line = text.count("\n", 0, match.start(3))
        found.append(Block(match[2], match[3], match[4] or "", bool(match[1]), line, inside[0] if inside else None))
    return found


def numbers(text: str) -> list[float]:
    """Every number of a prose text; a comma or a space may group its digits by three."""
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d)[, ](?=\d{3}\b)", "", text))]


def bold_numbers(text: str) -> list[float]:
    return [n for bold in re.findall(r"\*\*(.+?)\*\*", text) for n in numbers(bold)]


def check_answer(answer: str, printed: str) -> None:
    """Every bold number of an answer is printed by its code."""
    computed = {float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", printed)}
    missing = [n for n in bold_numbers(answer) if n not in computed]
    assert not missing, f"{answer.strip()}\nbut its code prints {printed}"


def run(page: Path, slow: bool) -> int:
    """Run the Python blocks of a page, all of them if `slow`. Return how many ran."""
    space: dict[str, object] = {"__name__": page.stem}
    count = 0
    for block in blocks(page):
        if block.kind != "python" or (block.slow and not slow):
            continue
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile("\n" * block.line + block.code, str(page), "exec"), space)
        if block.answer is None:
            assert output.getvalue() == block.printed, f"{page.name}, line {block.line}"
        else:
            check_answer(block.answer, output.getvalue())
        count += 1
    return count


@pytest.fixture(autouse=True)
def _print_options():
    yield
    torch.set_printoptions(profile="default")


@pytest.mark.parametrize("page", BOOKS[ENGLISH], ids=lambda p: p.stem)
def test_a_page_prints_what_it_says_and_answers_rightly(page):
    assert run(page, slow=False) >= 5


@pytest.mark.slow
def test_the_page_about_heads_reads_a_published_model():
    page = ENGLISH / "03_heads.md"
    assert run(page, slow=True) == run(page, slow=False) + 1


def test_a_wrong_answer_is_noticed():
    check_answer("**2,362,368** and **0.50**", "[2362368, 0.5]")
    with pytest.raises(AssertionError, match="but its code prints"):
        check_answer("about **1.5**, not 1.6", "1.6")


@pytest.mark.parametrize("page", [*BOOKS[ENGLISH], *BOOKS[SPANISH]], ids=lambda p: p.stem)
def test_a_page_has_equations_code_tests_and_exercises(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    sections = [
        part for part in re.split(r"^#+ ", BLOCK.sub("", text), flags=re.M) if re.search(r"^    \S", part, re.M)
    ]
    assert sections
    for section in sections:
        targets = " ".join(target for _, target in LINK.findall(section))
        assert "/src/" in targets, section
        assert "/tests/" in targets, section
    exercises = EXERCISE.findall(text)
    assert exercises == [str(n + 1) for n in range(len(exercises))]
    assert 3 <= len(exercises) <= 5
    assert text.count("<details") == len(exercises)
    for answer in re.findall(r"</summary>.*?</details>", text, flags=re.S):
        assert bold_numbers(answer), answer
        assert "```python" in answer, answer


@cache
def definitions(path: Path) -> set[str]:
    """Every `function`, `Class` and `Class.method` of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names |= {node.name} | {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_link_to_code_names_what_is_there(page):
    for name, target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.endswith(".py"):
            assert name.strip("`") in definitions((page.parent / target).resolve()), f"{page.name}: {name}"


def same_place(page: Path, target: str) -> str:
    """Where a link leads, with the names of Spanish pages replaced by those of the English ones."""
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve()
    english = {spanish: english for english, spanish in PAIRS} | {SPANISH / "erratas.md": ENGLISH / "errata.md"}
    english |= {SPANISH / f"parte_{part}.ipynb": ENGLISH / f"part_{part}.ipynb" for part in (1, 2)}
    place = english.get(place, place)
    place = ENGLISH / place.relative_to(SPANISH) if place.is_relative_to(SPANISH / "pictures") else place
    return f"{place.relative_to(ROOT)}#{anchor}"


def shape(page: Path) -> dict[str, list]:
    """All of a page that does not depend on its language."""
    text = page.read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    code = [(b.kind, ast.dump(ast.parse(b.code)) if b.kind == "python" else b.code, b.slow) for b in blocks(page)]
    return {
        "code": code,
        "printed": [block.printed for block in blocks(page)],
        "equations": re.findall(r"^    \S.*$", prose, flags=re.M),
        "tables": [
            [sorted(numbers(cell)) for cell in line.split("|")] for line in re.findall(r"^\|.*$", prose, flags=re.M)
        ],
        "answers": bold_numbers(prose),
        "headings": re.findall(r"^#+", prose, flags=re.M),
        "links": sorted(same_place(page, target) for _, target in LINK.findall(prose)),
    }


@pytest.mark.parametrize(("english", "spanish"), PAIRS, ids=lambda p: p.stem)
def test_the_spanish_page_has_the_same_code_and_figures(english, spanish):
    ours, theirs = shape(english), shape(spanish)
    for part in ours:
        assert theirs[part] == ours[part], part


def test_the_index_lists_every_page_of_its_language():
    for folder, pages in BOOKS.items():
        listed = re.findall(r"^\| \[.*\]\((.*\.md)\)", (folder / "index.md").read_text(encoding="utf-8"), flags=re.M)
        assert listed == [page.name for page in pages]
        assert len(pages) == 11


# --- pictures


def painter():
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", BOOKS, ids=lambda p: p.name)
def test_every_picture_is_small_and_shown_once(folder):
    shown = [name for page in BOOKS[folder] for name in re.findall(r"\]\(pictures/(\S+)\)", page.read_text("utf-8"))]
    assert sorted(shown) == sorted(path.name for path in (folder / "pictures").iterdir())
    assert all(path.stat().st_size <= 60_000 for path in (folder / "pictures").iterdir())


def check_drawn(draw: str, language: str) -> None:
    """A picture is drawn again byte for byte, with the matplotlib that drew it."""
    import matplotlib

    module = painter()
    written = (module.FOLDERS[language] / f"{draw}.svg").read_bytes()
    if f"Matplotlib v{matplotlib.__version__}".encode() not in written:
        pytest.skip("drawn by another release of matplotlib")
    assert module.picture(getattr(module, draw), language) == written, "run: python docs/make_pictures.py"


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_first_picture_is_drawn_again_byte_for_byte(language):
    check_drawn("attention", language)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "es"])
def test_all_pictures_are_drawn_again_byte_for_byte(language):
    for draw in painter().PICTURES:
        check_drawn(draw.__name__, language)


# --- commands


@pytest.mark.slow
def test_the_commands_of_the_lesson_run_one_after_the_other(tmp_path):
    for name in ("recipes", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [block.code for page in BOOKS[ENGLISH] for block in blocks(page) if block.kind == "bash"]
    assert len(commands) == 3
    script = 'decero() { python -m decero "$@"; }\nset -e\n' + "".join(commands)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "runs/lesson/stock/model.safetensors").is_file()
    assert "me/topics" in result.stdout
