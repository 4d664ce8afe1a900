"""Pictures become rows of text, and come back: palettes, captions, tokens, damaged facts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from decero.data.image_tokens import (
    PICTURE,
    ImageTokens,
    check_captions,
    describes_pictures,
    image_tokens_of,
    palette_of,
)
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError

GREYS = [[0], [85], [170], [255]]


@pytest.fixture
def tokenizer():
    made = train_tokenizer(
        ["a red bag", "una bota"] * 3, algorithm="byte_level_bpe", vocab_size=270, model_max_length=40,
        show_progress=False,
    )  # fmt: skip
    ImageTokens((3, 5), GREYS, ["bag", "boot"]).add_to(made)
    return made


@given(st.integers(2, 256), st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_picture_of_the_palette_comes_back_from_its_text(colors, height, width, seed):
    rng = np.random.default_rng(seed)
    palette = palette_of(np.zeros((1, 1, 1, 1), np.uint8), colors, 0)
    tokens = ImageTokens((height, width), palette, [])
    assert len(palette) == colors
    indexes_NP = rng.integers(0, colors, (2, height * width)).astype(np.uint8)
    pictures = tokens.pictures(indexes_NP)
    assert pictures.shape == (2, height, width, 1)
    assert (tokens.indexes(pictures) == indexes_NP).all()
    caption, found_P = tokens.parse(tokens.text("a bag", indexes_NP[1]), "row")
    assert caption == "a bag"
    assert (found_P == indexes_NP[1]).all()


def test_a_rare_colour_is_no_less_a_colour():
    """Only k-means reads a sample; here none of its 50,000 pixels would have the rare color."""
    pixels = np.zeros((1, 1000, 1000, 3), np.uint8)
    pixels[0, 700, 300] = 255, 0, 128
    assert palette_of(pixels, 4, seed=0) == [[0, 0, 0], [255, 0, 128]]


def test_a_pixel_takes_the_nearest_colour():
    tokens = ImageTokens((1, 4), GREYS, [])
    assert tokens.indexes(np.array([[[[42], [43], [200], [213]]]], np.uint8)).tolist() == [[0, 1, 2, 3]]
    colours = ImageTokens((1, 2), [[0, 0, 0], [200, 10, 10], [10, 200, 10]], [])
    assert colours.indexes(np.array([[[[150, 60, 0], [40, 130, 30]]]], np.uint8)).tolist() == [[1, 2]]


def test_upper_half_of_odd_rows_is_the_smaller_one():
    tokens = ImageTokens((3, 2), GREYS, [])
    assert tokens.upper_half(np.arange(6)[None]).tolist() == [[0, 1]]


def test_kmeans_finds_colours_that_stand_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[20, 20, 20], [220, 40, 40], [40, 60, 220]])
    pixels = (centres[rng.integers(0, 3, 600)] + rng.integers(-4, 5, (600, 3))).astype(np.uint8)
    palette = np.array(palette_of(pixels.reshape(6, 10, 10, 3), 3, seed=0))
    assert palette.shape == (3, 3)
    assert np.abs(np.sort(palette, axis=0) - np.sort(centres, axis=0)).max() <= 3
    assert (palette == palette_of(pixels.reshape(6, 10, 10, 3), 3, seed=0)).all()


def test_few_colours_are_kept_as_they_are():
    pixels = np.array([[[[9, 8, 7], [0, 0, 0], [9, 8, 7], [250, 1, 2]]]], np.uint8)
    assert palette_of(pixels, 16, seed=0) == [[0, 0, 0], [9, 8, 7], [250, 1, 2]]


def test_a_row_is_one_token_a_pixel_and_comes_back(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    tokens = image_tokens_of(loaded)
    assert tokens == ImageTokens((3, 5), GREYS, ["bag", "boot"])
    assert describes_pictures(tmp_path)
    text = tokens.text("a red bag", np.arange(15) % 4)
    ids = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    words = loaded("a red bag", add_special_tokens=False)["input_ids"]
    colors = loaded.convert_tokens_to_ids(tokens.characters)
    expected = [*words, loaded.convert_tokens_to_ids(PICTURE), *(colors[number % 4] for number in range(15))]
    assert ids == expected
    assert loaded.decode(ids) == text


def test_a_tokenizer_of_text_describes_no_pictures(tmp_path):
    made = train_tokenizer(["a b"], algorithm="wordpiece", vocab_size=60, model_max_length=9, show_progress=False)
    made.save_pretrained(tmp_path)
    assert image_tokens_of(made) is None
    assert not describes_pictures(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    assert not describes_pictures(tmp_path)
    assert not describes_pictures(tmp_path / "nothing")


@pytest.mark.parametrize("change", [
    {"size": [3]}, {"size": [0, 5]}, {"palette": [[1, 2]]}, {"palette": [[300]]}, {"palette": GREYS * 2},
    {"classes": 3}, {"palette": None},
])  # fmt: skip
def test_damaged_facts_get_one_line(tokenizer, change):
    tokenizer.init_kwargs["image_tokens"] = tokenizer.init_kwargs["image_tokens"] | change
    with pytest.raises(UserError, match=r"image_tokens in tokenizer_config\.json is damaged"):
        image_tokens_of(tokenizer)


@pytest.mark.parametrize("text", ["a bag", f"a bag{PICTURE}⠀", f"{PICTURE}{'⠄' * 15}", f"{PICTURE}{'x' * 15}"])
def test_a_text_that_is_no_picture_gets_one_line(text):
    with pytest.raises(UserError, match="test row 3: this is no picture of 3 x 5 pixels and 4 colors"):
        ImageTokens((3, 5), GREYS, []).parse(text, "test row 3")


@pytest.mark.parametrize(("caption", "message"), [
    (None, "train row 1: there is no caption in column 'text'"), ("  ", "train row 1: there is no caption"),
    (["a"], "train row 1: column 'text' holds list, no text"), (0, "train row 1: column 'text' holds int, no text"),
    (f"a {PICTURE}", "train row 1: the caption in column 'text' holds"), ("⠃⠗⠇", "or a Braille pattern"),
])  # fmt: skip
def test_a_bad_caption_gets_one_line(caption, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        check_captions(["a bag", caption], "train", "text")


def test_captions_lose_spaces_at_their_ends():
    assert check_captions([" a bag \n", "a boot"], "train", "text") == ["a bag", "a boot"]
