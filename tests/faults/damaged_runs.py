"""Folders of finished and unfinished runs of every recipe, damaged, then resumed, examined, exported or pushed.

A run that resumes at all must end with the weights of an undisturbed one.
"""

import json
import os
import shutil
from pathlib import Path

from tests.faults.case import Case, Place, Step
from tests.faults.world import MEASURES, RECIPES, TRAINED

PLACES = [path for path in RECIPES if path not in ("benchmark", *MEASURES)]


def cut(dice, path: Path):
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data) + 1)])


def flip(dice, path: Path):
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 20]) if data else 0):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def other(dice, path: Path):
    path.write_bytes(
        dice.choice(
            [
                b"",
                b"{",
                b"[1]",
                b"{}",
                b"null",
                b"\xff\xfe\x00",
                b"hello\n",
                b"&a [*a]",
                b"7",
                b'{"a": NaN}',
                b"[" * 5000,
                b"\x00" * 5000,
            ]
        )
    )


def junk(dice, path: Path):
    """Wrong types in a file of JSON, one line of it or the whole."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = dice.randrange(len(lines))
    content = json.loads(lines[number])
    key = dice.choice(list(content))
    content[key] = dice.choice([None, -1, 10**30, "text", [], {}, [{}], {"a": []}, True, 0.5])
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines))


def lines(dice, path: Path):
    """Lines lost, doubled or moved, as in a log."""
    kept = path.read_bytes().splitlines(keepends=True)
    number = dice.randrange(max(1, len(kept)))
    how = dice.choice(["lose", "double", "move"])
    moved = kept[number : number + 1]
    kept[number : number + 1] = [] if how != "double" else moved * 2
    path.write_bytes(b"".join(moved + kept if how == "move" else kept))


def gone(dice, path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder(dice, path: Path):
    gone(dice, path)
    path.mkdir()


def pipe(dice, path: Path):
    gone(dice, path)
    os.mkfifo(path)


def link(dice, path: Path):
    gone(dice, path)
    path.symlink_to(dice.choice([path.name, "nowhere", "/dev/zero", "/dev/null", "/etc/passwd", ".", ".."]))


def moved(dice, path: Path):
    """The same content behind a link."""
    path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to(f"{path.name}.moved")


def more(dice, path: Path):
    """A file that nobody expects beside it."""
    name = dice.choice(
        ["x.bin", "step-00000099", ".step-00000003.tmp", "README.md", "LICENSE", "step-abc", "\n", "ünï", ".lock"]
    )
    (path.parent / name).write_bytes(b"\xff" * 9) if dice.random() < 0.6 else (path.parent / name).mkdir(exist_ok=True)


DAMAGES = [cut, cut, flip, flip, other, other, junk, lines, gone, gone, folder, pipe, link, moved, more]


def damage(dice, run: Path, story: list[str]) -> None:
    paths = sorted(path for path in run.rglob("*") if not path.is_symlink() and (path.is_file() or path.is_dir()))
    if dice.random() < 0.5:  # every kind of file alike, where a comparison has many
        names = sorted({path.name for path in paths})
        name = dice.choice(names)
        paths = [path for path in paths if path.name == name]
    path = dice.choice(paths)
    how = dice.choice([gone, folder, pipe, link, moved, more] if path.is_dir() else DAMAGES)
    try:
        how(dice, path)
        story.append(f"{path.relative_to(run)}: {how.__name__}")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError):  # no JSON, or nothing left to damage
        cut(dice, path) if path.is_file() else None
        story.append(f"{path.relative_to(run)}: cut")


def weights(run: Path) -> dict[str, bytes]:
    """Return the weights of every model of a run. A folder that `moved` renamed has its old name."""
    return {
        str(path.relative_to(run)).replace(".moved", ""): path.read_bytes()
        for path in run.rglob("model*/model.safetensors")
        if path.is_file() and path.parent.name in ("model", "model.moved")
    }


def draw(place: Place) -> Case:
    dice, world = place.dice, place.world
    recipe = dice.choice([*PLACES, *TRAINED])
    state = dice.choice(["finished", "stopped", "stopped"]) if recipe != "train_tokenizer" else "finished"
    template = world.run_in(recipe, state)
    run = place.out / "run"
    shutil.copytree(template, run)
    for path in run.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(template), str(run)))
    story = [f"{recipe}, {state}"]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        damage(dice, run, story)
    model = next(
        (path.parent for path in sorted(run.rglob("model.safetensors")) if path.parent.name == "model"), run / "model"
    )
    resume = Step(recipe, [world.config(recipe), f"output={run}", "--resume"])
    uses = [
        resume, resume, resume, resume, Step("decero", ["doctor", run], codes=(0, 1)),
        Step("decero", ["push", model, "me/model", "--dry-run"]),
        Step("decero", ["export", model, place.out / "exported"]),
        Step(recipe, [world.config(recipe), f"output={run}"]),
    ]  # fmt: skip
    chosen = dice.choice(uses)
    wanted = weights(world.run(recipe))

    def wrong(done) -> str | None:
        """What a run has learned does not depend on the damage."""
        if state == "finished" or chosen is not resume or done[-1].code != 0:
            return None
        found = weights(run)
        return None if found == wanted else f"{recipe} resumed to other weights"

    return Case([chosen], story, wrong)
