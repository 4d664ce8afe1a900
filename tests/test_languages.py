"""What exists in English and in Spanish says the same: commands, links, figures, code."""

import ast
import copy
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, LEAME = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.es.md"))
LESSON, LECCION = ROOT / "docs" / "lesson", ROOT / "docs" / "es" / "leccion"
NOTEBOOKS = [(LESSON / "part_1.ipynb", LECCION / "parte_1.ipynb"), (LESSON / "part_2.ipynb", LECCION / "parte_2.ipynb")]


def blocks(page: str) -> list[list[str]]:
    """The lines of every block of code, without comments."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.M | re.S)
    return [[kind, *(re.sub(r"\s+#.*", "", line) for line in text.splitlines())] for kind, text in found]


def links(page: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("README")]


def figures(page: str) -> list[str]:
    """Every number outside of blocks; a comma or a space may group its digits by three."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return re.findall(r"\d+(?:\.\d+)*", re.sub(r"(?<=\d)[, ](?=\d{3}\b)", "", prose))


def test_the_spanish_readme_has_the_commands_of_the_english():
    assert blocks(LEAME) == blocks(README)
    assert re.findall(r"`([^`\n]+)`", LEAME) == re.findall(r"`([^`\n]+)`", README)


def test_the_spanish_readme_has_the_links_of_the_english():
    assert links(LEAME) == links(README)
    assert "[Español](README.es.md)" in README
    assert "[English](README.md)" in LEAME
    for link in links(LEAME):
        assert link.startswith("http") or (ROOT / link.split("#")[0]).exists(), link


def test_the_spanish_readme_has_the_figures_of_the_english():
    assert figures(LEAME) == figures(README)
    for page in (README, LEAME):
        headings = [len(marks) for marks in re.findall(r"^(#+) ", page, flags=re.M)]
        assert headings == [len(marks) for marks in re.findall(r"^(#+) ", README, flags=re.M)]
        assert all(len(line) <= 120 or line.startswith("|") for line in page.splitlines())


def without_words(code: str) -> str:
    """Return code without comments and strings, which a reader may see in another language."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant("") if isinstance(node.value, str) else node

    return ast.dump(Blank().visit(copy.deepcopy(ast.parse(code))))


def read(path: Path) -> list[tuple[str, str]]:
    """The cells of a notebook: kind and text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells), f"{path}: outputs"
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize(("english", "spanish"), NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_same_code_in_both_languages(english, spanish):
    pairs = list(zip(read(english), read(spanish), strict=True))
    assert len(pairs) > 15
    for (kind, one), (other_kind, other) in pairs:
        assert kind == other_kind
        if kind == "code":
            assert without_words(one) == without_words(other)
        else:
            assert one != other


@pytest.mark.parametrize("path", [path for pair in NOTEBOOKS for path in pair], ids=lambda path: path.stem)
def test_the_links_of_a_notebook_exist(path):
    for kind, text in read(path):
        for link in re.findall(r"\]\((?!http)([^)#]+)", text) if kind == "markdown" else []:
            assert (path.parent / link).exists(), f"{path}: {link}"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for pair in NOTEBOOKS for path in pair], ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    if path.stem.endswith("1"):
        assert "[0.1892, 0.5432, 0.5857]" in printed
        assert float(printed.rsplit(":", 1)[1]) > 0.9  # the head that looks back
        assert "False False" not in printed
        assert len(pictures) == 3
    else:
        before, frequencies, after = (float(number) for number in re.findall(r": +(\d\.\d+)", printed)[:3])
        assert after < frequencies < before
        right, of = map(int, re.findall(r"^(\d+) (?:of|de) (200)", printed, flags=re.M)[0])
        assert right > 0.9 * of
        assert "T5ForConditionalGeneration doscientos dieciocho" in printed
        assert len(pictures) == 1
