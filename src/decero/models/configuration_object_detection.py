"""Define the configuration of models that find objects in images."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_shared import StackConfig


@strict
class DeceroDetectionConfig(StackConfig):
    r"""Configure a detector of objects by set prediction such as DETR (Carion et al. 2020).

    Args:
        stem: how pixels become tokens: `conv`, convolutions of stride 2, each with group norm; `patch`, one matrix; or
            `backbone`, the last feature map of a model of transformers.
        patch_size: pixels of a side that one token stands for, with `conv` and `patch`; `conv` needs a power of 2.
        stem_depth: convolutions at each size of the stem `conv`: the first halves, the others keep the size.
        backbone_config: configuration of the backbone, such as {model_type: resnet, ...}. Its batch norms are frozen,
            its other weights are trained.
        num_hidden_layers, decoder_layers: layers of encoder and decoder; None: the same number.
        num_queries: the most objects that the model finds in an image.
        queries: `learned`, a trained position a query (Carion et al. 2020), or `anchors`, a trained box a query, which
            each layer corrects (DAB-DETR: Liu et al. 2022). Only `anchors` can learn from denoising queries.
        anchor_prior: a query looks around its box from the first step: the scores of cross-attention get a Gaussian of
            the box, with half of its width and height as standard deviations (Gao et al. 2021, section 3.2). Needs
            `anchors`.
        box_bias: each head learns at which distances from the sides of its box a query looks (Plain DETR: Lin et al.
            2023, section 4.1). Needs `anchor_prior`.
        proposals: each place of the map proposes an object, and the queries are the likeliest proposals, not trained
            boxes (Zhu et al. 2021, appendix A.4). Proposals learn from an auxiliary loss. Needs `anchors` and
            `auxiliary_loss`. A map with fewer places than `num_queries` gives fewer queries. If a padded picture has
            few places, places of its padding become queries, too.
        position_temperature: base of the sinusoidal positions of places and boxes. DETR has 10,000, DAB-DETR 20: all
            numbers are shares of an image, so with 10,000 most features hardly change from place to place.
        carry_norm: hand the normalised state of a decoder layer to the next one, and normalise the last state twice,
            as the stock DETR does with its `auxiliary_loss`.
        auxiliary_loss: also return classes and boxes of every decoder layer before the last, for their losses.
        class_cost, bbox_cost, giou_cost: weights of a match of a query and an object (section 3.1).
        bbox_loss_coefficient, giou_loss_coefficient: weights of the box losses beside the cross-entropy of classes.
        eos_coefficient: weight of the cross-entropy of queries without an object.
    """

    model_type = "decero_detection"
    sub_configs = {"backbone_config": AutoConfig}  # type: ignore[assignment]
    position_embedding_type = "none"  # of the stacks: sinusoidal positions are added in each layer

    stem: Literal["conv", "patch", "backbone"] = "conv"
    stem_depth: int = 1
    patch_size: int = 8
    num_channels: int = 3
    backbone_config: dict | PreTrainedConfig | None = None
    decoder_layers: int | None = None
    num_queries: int = 100
    queries: Literal["learned", "anchors"] = "anchors"
    anchor_prior: bool = False
    box_bias: bool = False
    proposals: bool = False
    position_temperature: float | int = 10_000
    carry_norm: bool = False
    auxiliary_loss: bool = True
    class_cost: float | int = 1
    bbox_cost: float | int = 5
    giou_cost: float | int = 2
    bbox_loss_coefficient: float | int = 5
    giou_loss_coefficient: float | int = 2
    eos_coefficient: float | int = 0.1
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        backbone: Any = self.backbone_config
        if isinstance(backbone, dict):
            if "model_type" not in backbone:
                raise ValueError("backbone_config needs model_type, such as resnet")
            self.backbone_config = backbone = AutoConfig.for_model(**backbone)
        if backbone is not None:
            self.num_channels = backbone.num_channels
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)

    def validate_stem(self):
        """Raise ValueError if stem, patches and backbone do not fit."""
        if (self.stem == "backbone") != (self.backbone_config is not None):
            given = "no backbone_config" if self.backbone_config is None else "a backbone_config"
            raise ValueError(f"stem is {self.stem}, with {given}; stem backbone and backbone_config go together")
        if self.patch_size < 1 or (self.stem == "conv" and self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"patch_size {self.patch_size} must be positive, and a power of 2 for stem conv")
        if self.stem_depth < 1 or (self.stem_depth > 1 and self.stem != "conv"):
            raise ValueError(f"stem_depth {self.stem_depth} must be at least 1, and is 1 without stem: conv")

    def validate_queries(self):
        """Raise ValueError for no queries, and for a width that two coordinates cannot share."""
        if self.anchor_prior and self.queries != "anchors":
            raise ValueError("anchor_prior needs a box a query; set queries: anchors, or anchor_prior: false")
        if self.proposals and not (self.queries == "anchors" and self.auxiliary_loss):
            raise ValueError("proposals need queries: anchors and auxiliary_loss: true")
        if self.box_bias and not self.anchor_prior:
            raise ValueError("box_bias needs anchor_prior: true")
        if self.position_temperature <= 1:
            raise ValueError(
                f"position_temperature {self.position_temperature} must be greater than 1; DAB-DETR has 20"
            )
        if self.num_queries < 1:
            raise ValueError(f"num_queries {self.num_queries} must be at least 1")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even: half of a position is the row's")
