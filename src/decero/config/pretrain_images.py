"""Define the settings of pretraining on pictures: hidden patches, and diffusion."""

from pydantic import Field

from decero.config.finetune_images import MOST_PIXELS, ImageData, ImageRun, LabelledImages
from decero.config.sections import Section


class MaskedImageSection(Section):
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of the picture that is hidden and predicted")
    mask_patch_size: int | None = Field(
        None, ge=1, le=MOST_PIXELS, description="pixels of a side of a square that is hidden; null: one patch"
    )


class PretrainMaskedImage(ImageRun):
    data: ImageData
    objective: MaskedImageSection = MaskedImageSection()


class DiffusionSection(Section):
    class_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of training pictures that are learnt without their class, for guidance"
    )


class PretrainImageDiffusion(ImageRun):
    data: LabelledImages
    objective: DiffusionSection = DiffusionSection()
