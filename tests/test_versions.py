"""The README, the Makefile, the bounds of pyproject.toml and the lock name versions: here they agree."""

import ast
import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import decero
from decero.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PYPROJECT["build-system"]["requires"],
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
]
# A package has several lines in the lock where its newest release has dropped a Python that we support.
LOCKED: dict[str, list[Version]] = {}
for name, version in re.findall(r"^([\w.-]+)==([\w.+!]+)", LOCK, flags=re.M):
    LOCKED.setdefault(canonicalize_name(name), []).append(Version(version))


def bound(name: str, operator: str) -> Version:
    """The version after `operator` in the requirement on `name`."""
    [requirement] = [r for r in REQUIREMENTS if r.name == name]
    [version] = [s.version for s in requirement.specifier if s.operator == operator]
    return Version(version)


@pytest.mark.parametrize("requirement", [r for r in REQUIREMENTS if r.name != "torch"], ids=lambda r: r.name)
def test_the_lock_keeps_the_bounds(requirement):
    versions = LOCKED.get(canonicalize_name(requirement.name), [])
    assert versions, f"{requirement.name} is not in constraints.txt; run make lock"
    for version in versions:
        assert version in requirement.specifier, f"constraints.txt: {requirement.name}=={version}; run make lock"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_requirement_has_a_lower_bound(requirement):
    assert {specifier.operator for specifier in requirement.specifier} & {">=", "=="}


def test_pictures_need_no_torchvision_timm_or_torchmetrics():
    """docs/guides/pictures.md says so: neither the lock nor a requirement nor an import names them."""
    spared = {"torchvision", "timm", "torchmetrics"}
    assert not spared & {*LOCKED, *(canonicalize_name(requirement.name) for requirement in REQUIREMENTS)}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not spared & {name.split(".")[0] for name in names}, f"{path}, line {node.lineno}"


def test_every_locked_file_has_a_hash():
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.M)[1:]
    assert len(entries) == sum(map(len, LOCKED.values()))
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_the_lock_names_no_url_and_no_folder():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    for line in lines:
        assert not re.search(r"://|^\s*-[^-]|^--|@ |/", line), line


def test_the_lock_leaves_torch_and_cuda_to_torch():
    found = [name for name in LOCKED if re.match(r"torch|triton|nvidia-|cuda-|pytorch-", name)]
    assert found == []


def test_the_lock_has_what_torch_needs():
    needed = [Requirement(line) for line in requires("torch") or []]
    for requirement in needed:
        if requirement.marker is None and not re.match(r"triton|nvidia-|cuda-|pytorch-", requirement.name):
            assert canonicalize_name(requirement.name) in LOCKED, f"name {requirement.name} in make lock"


def test_the_cap_of_transformers_is_above_the_locked():
    [locked] = LOCKED["transformers"]
    assert bound("transformers", "<") == Version(f"{locked.major}.{locked.minor + 1}")


def test_sacrebleu_is_capped_for_its_private_methods():
    from sacrebleu.metrics import BLEU, CHRF

    assert bound("sacrebleu", "<") == Version("3")
    for metric in (BLEU, CHRF):  # of sufficient_statistics: chrF has no public counterpart
        assert callable(metric._extract_corpus_statistics)
        assert callable(metric._compute_score_from_stats)


def test_the_makefile_takes_a_torch_within_bounds():
    found = re.findall(r"\bTORCH *\??=? *torch==(\d+(?:\.\d+)*)", MAKEFILE)
    [torch] = [r for r in REQUIREMENTS if r.name == "torch"]
    assert found
    for version in found:
        assert version in torch.specifier, version


def test_tools_of_the_makefile_are_pinned():
    assert re.findall(r"^(\w+) := \w+==[\d.]+$", MAKEFILE, flags=re.M) == ["PIP", "UV", "TWINE"]


def test_the_oldest_python_is_the_same_everywhere():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    classifiers = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert classifiers == [oldest, "3.12", "3.13"]
    assert f"--python-version {oldest}" in MAKEFILE
    said = [(page.name, v) for page in PAGES for v in re.findall(r"Python (3\.\d+)", page.read_text(encoding="utf-8"))]
    assert "README.md" in dict(said)
    assert {version for _, version in said} == {oldest}, said


def test_every_file_names_the_same_release():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert decero.__version__ == PROJECT["version"] == str(citation["version"])
    assert citation["license"] == PROJECT["license"]


def test_the_image_has_the_locked_torch_and_python():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    python, uv, torch = re.findall(r"python:(3\.\d+)-|uv==([\d.]+)|^ARG TORCH=torch==([\d.]+)$", dockerfile, flags=re.M)
    assert f"Programming Language :: Python :: {python[0]}" in PROJECT["classifiers"]
    assert f"uv=={uv[1]}" in MAKEFILE
    assert f"torch=={torch[2]}" in MAKEFILE


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_version_that_a_page_names_is_within_bounds(page):
    named = {r.name: r.specifier for r in REQUIREMENTS}
    text = page.read_text(encoding="utf-8")
    for name, version in re.findall(r"(?i)\b([a-z][a-z-]+)(?:==|>=| )v?(\d+(?:\.\d+)+)\b", text):
        if name.lower() in named:
            assert version in named[name.lower()], f"{page.name}: {name} {version}"
