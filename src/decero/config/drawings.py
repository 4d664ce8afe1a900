"""Define the settings that measure a model that draws pictures."""

from pydantic import Field

from decero.config.picture_source import LabelledPictures
from decero.config.run_config import RunConfig
from decero.config.sections import MOST_EXAMPLES

MOST_PICTURES = 10_000  # of a class
MOST_REPEATS = 100


class EvaluateDrawings(RunConfig):
    options = ("--resume",)
    publishes = "a measurement trains no model"
    own_texts = False

    model: str = Field(description="folder or hub name of the model that draws")
    classifier: str = Field(
        description="folder or hub name of an independent classifier of the same classes, "
        "from recipes/finetune_image_classification.py"
    )
    data: LabelledPictures
    pictures_per_class: int = Field(100, ge=1, le=MOST_PICTURES, description="pictures of each class, each time")
    repeats: int = Field(3, ge=1, le=MOST_REPEATS, description="draw so often, with seed, seed + 1, ...")
    steps: int | None = Field(
        None, ge=1, le=1000, description="steps of the solver of a diffusion model; 16 when not set"
    )
    temperature: float | None = Field(
        None, gt=0, le=100, description="of a model of image tokens: below 1 prefers likely pixels; 1 when not set"
    )
    guidance: float | None = Field(
        None, ge=0, le=1000,
        description="strength of the class: above 1, drawings are more typical of it; when not set, 2 for diffusion, "
        "1 for image tokens",
    )  # fmt: skip
    per_device_eval_batch_size: int = Field(
        64, ge=1, le=MOST_EXAMPLES, description="pictures per batch of the classifier; does not change the results"
    )
