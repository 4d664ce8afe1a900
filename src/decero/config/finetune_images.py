"""Define the settings of training on pictures: classes of pictures, of pixels, and boxes of objects."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from decero.config.picture_source import LabelledPictures, PictureSource
from decero.config.run_config import RunConfig
from decero.config.sections import (
    MOST_ROWS,
    MOST_WORKERS,
    ModelSection,
    OptimSection,
    Section,
    TrainingSection,
)
from decero.config.training_run import check_eval_only

MOST_PIXELS = 4096  # of a side
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]


class AugmentSection(Section):
    horizontal_flip: bool = Field(
        True, description="flip every other training picture left for right; false for digits, letters and signs"
    )
    padding: int = Field(
        0, ge=0, le=MOST_PIXELS, description="move pictures at random by up to this many pixels; the new edge is black"
    )
    min_scale: float | None = Field(
        None, gt=0, le=1, description="crop at random to at least this share of the area, and resize; null: no crop"
    )
    max_scale: float = Field(
        1.0, ge=1, le=16, description="show pictures smaller at random, on up to this many times their area; the rest "
        "is black",
    )  # fmt: skip
    color_jitter: float = Field(
        0.0, ge=0, le=1, description="change brightness, contrast and saturation at random, each by up to this share"
    )
    erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability to erase a rectangle of a training picture; it has 2 to 40 % of the area",
    )


class ObjectAugmentSection(AugmentSection):
    copy_paste: float = Field(
        0.0, ge=0, le=1, description="probability to paste objects of another training picture, cut out along their "
        "masks (data.mask_column)",
    )  # fmt: skip


class ImageData(PictureSource):
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="pixels of a side, or [height, width], that pictures are stretched to; null: those of the model, "
        "else of the first picture",
    )
    augment: AugmentSection = AugmentSection()
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many pictures, chosen by the seed"
    )
    num_proc: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="processes that read pictures; by their number when not set"
    )


class LabelledImages(ImageData, LabelledPictures):
    pass


class MaskedImages(ImageData):
    augment: ObjectAugmentSection = ObjectAugmentSection()
    mask_column: str = Field("mask", description="column of the masks: grey or palette pictures, one class id a pixel")
    class_names: list[str] | None = Field(
        None, min_length=2, description="names of the ids 0, 1, 2 ...; null: the ids of train, as numbers"
    )
    ignored_id: int = Field(255, ge=0, le=255, description="id of pixels that are not scored")

    @property
    def others(self) -> dict[str, str]:
        return {self.mask_column: "data.mask_column"}


class BoxedImages(ImageData):
    objects_column: str = Field(
        "objects", description="column of the objects: {bbox: [...], category: [...]}, or a list of {bbox, category}"
    )
    box_field: str = Field("bbox", description="field of objects_column with the boxes, four numbers in pixels each")
    category_field: str = Field("category", description="field of objects_column with the class of each box")
    box_format: Literal["xywh", "xyxy", "cxcywh"] = Field(
        "xywh",
        description="how a box is written: xywh (left, top, width, height; as COCO), xyxy (two corners; as Pascal VOC)"
        " or cxcywh (centre, width, height)",
    )
    augment: ObjectAugmentSection = ObjectAugmentSection()
    mask_column: str | None = Field(
        None, description="column of the masks that data.augment.copy_paste needs: 0 is the background; each class, or "
        "each object, has its own id",
    )  # fmt: skip

    @property
    def others(self) -> dict[str, str]:
        masks = {self.mask_column: "data.mask_column"} if self.mask_column else {}
        return {self.objects_column: "data.objects_column"} | masks

    @model_validator(mode="after")
    def _objects_have_masks(self):
        if self.augment.copy_paste and not self.mask_column:
            raise ValueError(
                "data.augment.copy_paste: it cuts objects out along their masks; set data.mask_column, or remove it"
            )
        return self


class SmoothedSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread over the classes in the loss")


class BoxDenoisingSection(Section):
    groups: int = Field(5, ge=1, le=100, description="copies of each object, which the model corrects")
    box_noise: float = Field(
        0.4, ge=0, lt=1, description="how wrong a copy is: it moves by up to this share of half a side, and its sides "
        "grow or shrink by up to this share",
    )  # fmt: skip
    class_noise: float = Field(0.2, ge=0, le=1, description="share of the copies whose class is drawn anew")


class DetectionSection(Section):
    class_weight: float = Field(1.0, ge=0, le=1e6, description="weight of classes in loss and matching")
    box_weight: float = Field(5.0, ge=0, le=1e6, description="weight of the L1 distance of boxes")
    giou_weight: float = Field(2.0, ge=0, le=1e6, description="weight of 1 - generalized IoU of boxes")
    no_object_weight: float = Field(
        0.1, ge=0, le=1e6, description="weight of the cross-entropy of queries without an object"
    )
    auxiliary_loss: bool = Field(True, description="add the loss of every layer of the decoder, not only of the last")
    denoising: BoxDenoisingSection | None = Field(
        None, description="also learn to correct noised copies of the objects, as DN-DETR; needs a model whose queries "
        "are boxes",
    )  # fmt: skip


class ImageRun(RunConfig):
    """Hold what the recipes that read pictures share. Pictures need no tokenizer."""

    options = (*RunConfig.options, "--device", "--eval-only")

    model: ModelSection
    optim: OptimSection = OptimSection()
    training: TrainingSection

    def check_options(self) -> None:
        check_eval_only(self)

    @model_validator(mode="after")
    def _counted_in_pictures(self):
        for name, other in (
            ("global_batch_tokens", "global_batch_size"),
            ("per_device_tokens", "per_device_batch_size"),
        ):
            if getattr(self.training, name) is not None:
                raise ValueError(f"training.{name}: pictures have no tokens; set training.{other}")
        if self.training.packing == "on":
            raise ValueError("training.packing: pictures cannot be packed; remove it")
        return self


class FinetuneImageClassification(ImageRun):
    data: LabelledImages
    objective: SmoothedSection = SmoothedSection()


class FinetuneSemanticSegmentation(ImageRun):
    data: MaskedImages
    objective: SmoothedSection = SmoothedSection()


class FinetuneObjectDetection(ImageRun):
    data: BoxedImages
    objective: DetectionSection = DetectionSection()
