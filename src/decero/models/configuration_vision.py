"""Define the configuration of models that read images."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_shared import StackConfig


@strict
class PictureConfig(StackConfig):
    r"""Hold the fields of models whose tokens are patches of an image.

    Args:
        image_size: height and width in pixels, or one number for both.
        patch_size: height and width of a patch; the sizes of an image are multiples of it.
    """

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3

    @property
    def picture_size(self):
        """Height and width of an image in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def grid_size(self):
        """Height and width of an image in patches."""
        height, width = self.picture_size
        return height // self.patch_size, width // self.patch_size

    def validate_image(self):
        """Raise ValueError if sizes of images and patches do not fit."""
        patch = self.patch_size
        if patch < 1 or len(self.picture_size) != 2 or any(side < 1 or side % patch for side in self.picture_size):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {patch}; change one")


@strict
class DeceroVisionConfig(BackboneConfigMixin, PictureConfig):
    r"""Configure an encoder of image patches such as ViT, DeiT or SETR (Dosovitskiy et al. 2021).

    Args:
        stem: how pixels become patch embeddings: `patch`, one matrix (ViT), or `conv`, convolutions of stride 2, each
            with group norm (Xiao et al. 2021). `conv` learns faster from few images; patch_size is then a power of 2.
        stem_depth: convolutions at each size of the stem `conv`: the first halves, the others keep the size.
        pooling: what a classifier reads: `cls`, a class token before the patches (ViT), or `mean`, the mean of the
            patches, without a class token (Beyer et al. 2022).
        distillation_token: put a second token behind the class token (DeiT: Touvron et al. 2021, section 4).
        distillation_head: classify by the mean of two heads, one a token, as DeiT does after its distillation.
        position_embedding_type: `learned`, a vector per token (ViT), or `sinusoidal`, half of the features for the row
            and half for the column (Carion et al. 2020, appendix A.4). Both are added to the embeddings.
        pooling_layer: the bare model also returns `pooler_output`: dense and tanh over what `pooling` says, as in BERT.
        decode_head: how segmentation goes back to pixels: `naive`, `pup` (progressive upsampling) or `mla` (multi-level
            aggregation) (SETR: Zheng et al. 2021, section 3.3).
        decoder_hidden_size: channels of the convolutions of the decode head.
        semantic_loss_ignore_index: label of pixels that the loss ignores.
        out_features, out_indices: levels that the backbone returns: `stem`, `stage1` ... one a layer.
    """

    model_type = "decero_vision"

    stem: Literal["patch", "conv"] = "patch"
    stem_depth: int = 1
    pooling: Literal["cls", "mean"] = "cls"
    distillation_token: bool = False
    distillation_head: bool = False
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    pooling_layer: bool = False
    decode_head: Literal["naive", "pup", "mla"] = "naive"
    decoder_hidden_size: int = 256
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *(f"stage{layer}" for layer in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @property
    def num_special_tokens(self):
        """Number of tokens before the patches."""
        return (self.pooling == "cls") + self.distillation_token

    def validate_stem(self):
        """Raise ValueError for patches that steps of 2 do not reach."""
        patch = self.patch_size
        halving = "stem conv" if self.stem == "conv" else "decode_head pup" if self.decode_head == "pup" else None
        if halving and patch & (patch - 1):
            raise ValueError(f"{halving} works in steps of 2, but patch_size {patch} is not a power of 2; change one")
        if self.stem_depth < 1 or (self.stem_depth > 1 and self.stem != "conv"):
            raise ValueError(f"stem_depth {self.stem_depth} must be at least 1, and is 1 without stem: conv")

    def validate_distillation(self):
        """Raise ValueError for a distillation token without class token, or its head without the token."""
        if self.distillation_token and self.pooling != "cls":
            raise ValueError(f"distillation_token needs pooling cls, not {self.pooling}")
        if self.distillation_head and not self.distillation_token:
            raise ValueError("distillation_head needs distillation_token: true")
