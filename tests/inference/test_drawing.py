"""`decero draw`: the grid, the classes, and one line for each mistake."""

import numpy as np
import pytest
import torch
from PIL import Image

from decero.cli.main import main
from decero.inference.diffusion_sampling import sample_pictures
from decero.inference.drawing import GAP, DiffusionDrawing, grid_of, load_drawing
from decero.models import DeceroDiffusionConfig, DeceroDiffusionModel, DeceroVisionConfig, DeceroVisionModel

NAMES = {0: "Bag", 1: "Ankle boot", 2: "Shirt"}


@pytest.fixture
def raises_one_line(capsys):
    """Run a command that must end with exit code 2 and one line that says so."""

    def check(words, said):
        capsys.readouterr()  # bars of saving
        with pytest.raises(SystemExit) as end:
            main(words)
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert said in error
        assert len(error.strip().splitlines()) == 1

    return check


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"image_size": [8, 12], "patch_size": 4, "num_channels": 1, "hidden_size": 14, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "intermediate_size": 11, "time_frequency_size": 6, "id2label": NAMES}
    model = DeceroDiffusionModel(DeceroDiffusionConfig(**sizes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    place = tmp_path_factory.mktemp("drawing") / "model"
    model.save_pretrained(place)
    return place


def test_a_grid_is_what_the_sampler_draws(folder, tmp_path, capsys):
    out = tmp_path / "grid.png"
    main(["draw", str(folder), "--class", "bag", "--n", "3", "--seed", "5", "--steps", "2", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 3 of Bag\n"
    loaded = load_drawing(str(folder))
    pictures = loaded.draw(["Bag"] * 3, steps=2, seed=5)
    expected = sample_pictures(loaded.model, torch.tensor([0]), steps=2, seed=5).numpy()
    assert (pictures[:1] == expected).all()
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * 48 + GAP, 2 * 72 + GAP)  # 8 x 12, enlarged six times
    assert (sheet[:48:6, :72:6] == pictures[0, ..., 0]).all()
    assert (sheet[48 + GAP :: 6, :72:6] == pictures[2, ..., 0]).all()
    assert (sheet[48 + GAP :, 72 + GAP :] == 255).all()  # no fourth picture


def test_all_classes_have_a_row_each(folder, tmp_path, capsys):
    out = tmp_path / "all.png"
    main(["draw", str(folder), "--n", "2", "--steps", "1", "--out", str(out)])
    assert "2 of Bag, Ankle boot, Shirt, a row each" in capsys.readouterr().out
    assert Image.open(out).size == (2 * 72 + GAP, 3 * 48 + 2 * GAP)


def test_classes_that_differ_in_case_are_told_apart():
    two = DiffusionDrawing("x", None, ["cat", "Cat", "dog"])
    assert [two.class_named(name) for name in ("cat", "Cat", "DOG")] == ["cat", "Cat", "dog"]


def test_colours_and_large_pictures_keep_their_size():
    pictures = np.arange(2 * 70 * 66 * 3, dtype=np.uint8).reshape(2, 70, 66, 3)
    sheet = np.asarray(grid_of(pictures, 2))
    assert sheet.shape == (70, 2 * 66 + GAP, 3)
    assert (sheet[:, 66 + GAP :] == pictures[1]).all()


@pytest.mark.parametrize(("words", "message"), [
    (["--class", "bagg"], "--class bagg: MODEL does not know it; did you mean bag?"),
    (["--class", "house"], "--class house: MODEL does not know it; known: Bag, Ankle boot, Shirt"),
    (["--n", "0"], "0 is not a whole number above 0"),
    (["--n", "500"], "--n 500: 3 rows make 1500 pictures, and a grid holds 1024"),
    (["--guidance", "nan"], "nan is not a number from 0 to 1000"),
    (["--seed", "-1"], "-1 is not a whole number from 0"),
    (["--caption", "a red bag"], "--caption: MODEL knows classes, no captions; give --class NAME"),
    (["--complete", "bag.png"], "--complete: MODEL draws whole pictures from noise; remove it"),
    (["--temperature", "0.5"], "--temperature: MODEL draws whole pictures, not pixel after pixel; remove it"),
    (["--out", "grid.jpg"], "--out grid.jpg: give a name that ends in .png"),
    (["--out", "no_folder/grid.png"], "--out no_folder/grid.png: there is no folder no_folder; make it first"),
])  # fmt: skip
def test_a_mistake_gets_one_line(folder, words, message, raises_one_line):
    raises_one_line(["draw", str(folder), *words], message.replace("MODEL", str(folder)))


def test_a_checkpoint_of_another_kind_gets_one_line(tmp_path, raises_one_line):
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 14, "num_hidden_layers": 1, "num_attention_heads": 1}
    DeceroVisionModel(DeceroVisionConfig(**sizes, intermediate_size=11)).save_pretrained(tmp_path / "vit")
    raises_one_line(["draw", str(tmp_path / "vit")], "vit: this decero_vision model draws no pictures; train one with")
