"""Settings of pictures: which columns are read, and that pictures are no stream."""

import pytest
from pydantic import ValidationError

from decero.config.finetune_images import BoxedImages, ImageData, LabelledImages, MaskedImages
from decero.config.image_token_runs import CaptionedPictures
from decero.config.picture_source import LabelledPictures, PictureSource

SOURCES = [PictureSource, LabelledPictures, CaptionedPictures, ImageData, LabelledImages, MaskedImages, BoxedImages]


@pytest.mark.parametrize("section", SOURCES)
def test_pictures_are_no_stream(section):
    assert section(name="a/b").source()["name"] == "a/b"
    with pytest.raises(ValidationError, match=r"data.streaming: pictures are read once, and kept; remove it"):
        section(name="a/b", streaming=True)


@pytest.mark.parametrize(
    ("section", "more", "columns"),
    [
        (ImageData, {}, []),
        (LabelledPictures, {"label_column": "kind"}, ["kind"]),
        (LabelledImages, {"label_column": "kind"}, ["kind"]),
        (MaskedImages, {}, ["mask"]),
        (BoxedImages, {}, ["objects"]),
        (CaptionedPictures, {}, ["label"]),
        (CaptionedPictures, {"caption_columns": ["en", "es"]}, ["en", "es"]),
    ],
)
def test_the_columns_of_a_section_are_read(section, more, columns):
    source = section(name="a/b", image_column="photo", **more).source()
    assert source["text_column"] == "photo"
    assert list(source["columns"]) == ["photo", *columns]
    assert all(setting.startswith("data.") for setting in source["columns"].values())
