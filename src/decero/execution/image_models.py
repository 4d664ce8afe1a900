"""Build models that read pictures, and the image processor that is saved beside them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedModel

from decero.config.sections import ModelSection
from decero.data.image_rows import Pixels
from decero.data.images import Resampling
from decero.errors import UserError
from decero.execution.build import (
    ALLOW_CODE,
    check_fields,
    check_room,
    check_shape,
    checkpoint_of,
    config_of,
    read_preset,
)
from decero.execution.model_folder import Checkpoint, read_json_file
from decero.execution.pretrained import load_pretrained, one_line, read_model_config

PROCESSOR = "preprocessor_config.json"
PROCESSORS = {  # Auto class of a head -> the processor of transformers that reads its answers; none needs torchvision
    "AutoModelForImageClassification": transformers.ViTImageProcessorPil,
    "AutoModelForSemanticSegmentation": transformers.SegformerImageProcessorPil,
    "AutoModelForObjectDetection": transformers.DetrImageProcessorPil,
    "AutoModelForMaskedImageModeling": transformers.ViTImageProcessorPil,
    "AutoModel": transformers.ViTImageProcessorPil,  # of a model that draws
}


def build_image_model(
    section: ModelSection, auto_class: Any, seed: int, *, new_head: bool = True, **fields: Any
) -> PreTrainedModel:
    """Load a checkpoint, or build a preset with random weights drawn from `seed`, in fp32.

    new_head: allow a head with random weights where the checkpoint has none. fields: configuration fields that the task
    decides (num_labels, id2label, image_size). Raises UserError as `build_model` does.
    """
    overrides = section.overrides | fields
    if section.attn_implementation in ("sdpa", "eager"):  # the device decides on others: `choose_attention`
        overrides["attn_implementation"] = section.attn_implementation
    source = str(section.config or section.name_or_path)
    transformers.set_seed(seed)
    with one_line(f"model: {source}", ALLOW_CODE):
        if section.config is not None:
            config = read_preset(section.config, overrides)
            check_shape(config, auto_class)
            check_room(auto_class, config, source)
            return auto_class.from_config(config)
        checkpoint = checkpoint_of(section)
        config = read_model_config(checkpoint)
        check_fields(config, section.overrides, source)
        check_shape(config, auto_class)
        new_labels = new_head and overrides.get("num_labels", config.num_labels) != config.num_labels
        return load_pretrained(
            auto_class, checkpoint, new_head=new_head, new_labels=new_labels, dtype=torch.float32, **overrides
        )


def pixels_for(section: ModelSection, size: int | list[int] | None, first: Callable[[], tuple[int, int]]) -> Pixels:
    """Return the form of the pictures for a model. size: of the settings. first: size of the first picture.

    A checkpoint keeps its mean and deviation, and its size, unless `size` is another. Raises UserError for a size that
    it cannot read, or that is smaller than a patch.
    """
    config: Any = config_of(section)
    source = str(section.config or section.name_or_path)
    saved, wanted = {}, _pair(size)
    if section.name_or_path is not None:
        saved = processor_settings(checkpoint_of(section, weights=False))
        if wanted and not _can_read(config, wanted):
            height, width = (
                config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
            )
            raise UserError(
                f"data.image_size: {source} reads pictures of {height} x {width}; remove this setting, or start from "
                "random weights"
            )
    height, width = found = wanted or _own_size(saved, config) or first()
    patch = _pair(getattr(config, "patch_size", None))
    if patch and (height < patch[0] or width < patch[1]):
        raise UserError(
            f"data.image_size: {height} x {width} pixels are less than a patch of {source}, {patch[0]} x {patch[1]}; "
            "raise it, or set model.overrides.patch_size"
        )
    return _form(found, saved, config, source)


def size_fields(section: ModelSection, pixels: Pixels) -> dict[str, Any]:
    """Return the configuration field that says how large pictures are, for a preset that has it."""
    own = getattr(config_of(section), "image_size", None)
    if section.config is None or own is None:
        return {}
    height, width = pixels.size
    return {"image_size": height if height == width else [height, width]}


def processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint says of its pictures; {} for nothing."""
    path = checkpoint.folder / PROCESSOR
    found = read_json_file(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: this holds no settings of a processor; save it again")
    return found


def saved_pixels(name: str, saved: dict[str, Any], config: Any) -> Pixels:
    """Return the form of the pictures that a trained model reads. Raises UserError where its folder does not say."""
    size = _own_size(saved, config)
    if not size and saved.get("size"):
        raise UserError(
            f"{name}: {PROCESSOR} gives a range of sizes, {str(saved['size'])[:60]}: all pictures get one size here; "
            'write "size": {"height": 512, "width": 512} there, or fine-tune it with data.image_size'
        )
    if not size:
        raise UserError(f"{name}: {PROCESSOR} does not say how large pictures are; save it with the model")
    return _form(size, saved, config, name)


def _own_size(saved: dict[str, Any], config: Any) -> tuple[int, int] | None:
    """Return the size that a processor gives, else that of the configuration, which may be a mere default.

    A model that cannot read the first one reads the second one.
    """
    found, own = _size_of(saved), _pair(getattr(config, "image_size", None))
    return found if found and _can_read(config, found) else own or found


def _can_read(config: Any, size: tuple[int, int]) -> bool:
    """Tell whether a model reads another size than `config.image_size`: ConvNeXt does, ViT has a vector a position.

    The model is built without memory and reads a picture without values. True where that cannot be tried.
    """
    if _pair(getattr(config, "image_size", None)) in (None, size):
        return True
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(copy.deepcopy(config)).eval()
            picture = torch.empty(1, _channels(config), *size)
    except Exception:  # such as remote code that is not allowed to run
        return True
    try:
        with torch.no_grad():
            model(pixel_values=picture)
    except Exception:  # ValueError, AssertionError, RuntimeError of shapes ...
        return False
    return True


def _channels(config: Any) -> int:
    backbone = getattr(config, "backbone_config", None)
    return getattr(backbone, "num_channels", None) or getattr(config, "num_channels", None) or 3


def _form(size: tuple[int, int], saved: dict[str, Any], config: Any, source: str) -> Pixels:
    """Return the form of pictures of this size, with what a processor has saved.

    Raises UserError for wrong values, and for a processor that changes pixels as decero does not.
    """
    channels = _channels(config)
    if channels not in (1, 3):
        raise UserError(f"model: {source} reads {channels} channels; pictures have 1 (grey) or 3 (RGB)")
    factor = saved.get("rescale_factor") or 1 / 255
    if saved.get("do_rescale") is False or not isinstance(factor, int | float) or abs(255 * factor - 1) > 1e-4:
        raise UserError(
            f"{source}: {PROCESSOR}: its pixels are not divided by 255; decero divides them always; use another model"
        )
    if saved.get("do_flip_channel_order"):
        raise UserError(f"{source}: {PROCESSOR}: do_flip_channel_order is true; decero reads only RGB, not BGR")
    plain, found = saved.get("do_normalize") is False, {}
    for name, half, none in (("mean", 0.5, 0.0), ("std", 0.5, 1.0)):
        values = [none] * channels if plain else saved.get(f"image_{name}") or [half] * channels
        fits = isinstance(values, list) and len(values) == channels
        if not fits or not all(isinstance(v, int | float) and (v > 0 or name == "mean") for v in values):
            raise UserError(f"{source}: {PROCESSOR}: image_{name} is {str(values)[:60]}; give {channels} numbers")
        found[name] = tuple(map(float, values))
    resample = saved.get("resample", int(Resampling.BILINEAR))
    if resample not in set(map(int, Resampling)):
        raise UserError(f"{source}: {PROCESSOR}: resample is {str(resample)[:60]}; give a number from 0 to 5")
    return Pixels(size, channels, found["mean"], found["std"], resample)


def processor_for(auto_class: Any, pixels: Pixels) -> Any:
    """Return the image processor of transformers that does to a picture what training did."""
    height, width = pixels.size
    normalizes = any(pixels.mean) or set(pixels.std) != {1.0}
    return PROCESSORS[auto_class.__name__](
        size={"height": height, "width": width}, image_mean=list(pixels.mean), image_std=list(pixels.std),
        resample=pixels.resample, do_resize=True, do_rescale=True, do_normalize=normalizes, do_pad=False,
    )  # fmt: skip


def _size_of(saved: dict[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of the pictures that a processor gives; None where it gives several sizes, or none.

    A processor that cuts out the centre gives its `crop_size`. One that gives the shortest edge: a square.
    """
    size = (saved.get("do_center_crop") and saved.get("crop_size")) or saved.get("size")
    if isinstance(size, dict):
        edge = None if "longest_edge" in size else size.get("shortest_edge")
        size = edge or [size.get("height"), size.get("width")]
    return None if saved.get("max_size") else _pair(size)


def _pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a size as configurations write it; None for none."""
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else []
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(n, int) and n > 0 for n in sides) else None
