"""Define the encoder of images and its heads.

Dimensions: B batch, C channels, Y and X height and width in pixels, h and w the same in patches, P patches, L tokens
(special tokens and patches), D model, V labels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    SemanticSegmenterOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .configuration_vision import DeceroVisionConfig
from .decode_heads import DECODE_HEADS
from .heads import Pooler, pool
from .layers import EncoderLayer
from .modeling_stack import DeceroPreTrainedModel, DeceroStack
from .patches import GRIDS, STEMS, patchify, to_map


class DeceroVisionPreTrainedModel(DeceroPreTrainedModel):
    """Define what all classes that read images share."""

    config: DeceroVisionConfig
    config_class = DeceroVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _input_embed_layer = "stem"
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": SelfAttention}


class DeceroVisionModel(DeceroVisionPreTrainedModel, DeceroStack):
    """Apply a stack of encoder layers to image patches: Dosovitskiy et al. 2021, eq. 1 to 4.

    add_pooling_layer: whether to compute `pooler_output`; None takes `config.pooling_layer`.
    use_mask_token: whether patches can be replaced by a trained vector (`bool_masked_pos`).
    """

    def __init__(self, config, add_pooling_layer=None, use_mask_token=False):
        super().__init__(config, EncoderLayer, config.num_hidden_layers)
        self.mask_token = nn.Embedding(1, config.hidden_size) if use_mask_token else None
        pooled = config.pooling_layer if add_pooling_layer is None else add_pooling_layer
        self.pooler = Pooler(config, config.pooling) if pooled else None
        self.post_init()

    def add_embeddings(self, config):
        self.stem = STEMS[config.stem](config)
        self.special_tokens = nn.ModuleList(
            nn.Embedding(1, config.hidden_size) for _ in range(config.num_special_tokens)
        )
        self.embed_positions = GRIDS[config.position_embedding_type](config)

    def grid_of(self, pixel_values_BCYX, interpolate):
        """Return height and width in patches. Raises ValueError for images that the model cannot read."""
        C, *size = pixel_values_BCYX.shape[1:]
        config, patch = self.config, self.config.patch_size
        if config.num_channels != C:
            raise ValueError(f"images have {C} channels, but num_channels is {config.num_channels}; convert the images")
        if tuple(size) != config.picture_size and not interpolate:
            expected = " x ".join(map(str, config.picture_size))
            raise ValueError(
                f"images have {size[0]} x {size[1]} pixels, but the model reads {expected}; resize them, or set "
                "interpolate_pos_encoding=True"
            )
        if any(side % patch or side < patch for side in size):
            raise ValueError(f"images have {size[0]} x {size[1]} pixels, which patches of {patch} do not fill")
        return size[0] // patch, size[1] // patch

    def embed(self, pixel_values_BCYX, masked_BP=None, interpolate=False):
        """Embed patches behind the special tokens, add positions, apply norm and dropout: eq. 1.

        masked_BP: (batch, patches), True for patches to replace. A stem of convolutions does not see them either.
        """
        grid = self.grid_of(pixel_values_BCYX, interpolate)
        pixel_values_BCYX = pixel_values_BCYX.to(self.dtype)
        if masked_BP is not None:
            if self.mask_token is None:
                raise ValueError(f"{type(self).__name__} has no mask token; build it with use_mask_token=True")
            masked_BP = masked_BP.bool()
            hidden_B1YX = enlarged(masked_BP, grid, self.config.patch_size)
            pixel_values_BCYX = pixel_values_BCYX.masked_fill(hidden_B1YX, 0.0)
        hidden_BPD = self.stem(pixel_values_BCYX).flatten(2).transpose(1, 2)
        if masked_BP is not None:
            unseen_1D = self.mask_token.weight.to(hidden_BPD.dtype)  # type: ignore[union-attr, operator]
            hidden_BPD = torch.where(masked_BP[..., None], unseen_1D, hidden_BPD)
        weights: list[torch.Tensor] = [token.weight.to(hidden_BPD.dtype) for token in self.special_tokens]  # type: ignore
        special = [weight_1D.expand(len(hidden_BPD), 1, -1) for weight_1D in weights]
        hidden_BLD = torch.cat((*special, hidden_BPD), dim=1)
        return self.dropout(self.embed_norm(hidden_BLD + self.embed_positions(grid, hidden_BLD)))

    def feature_maps(self, hidden_states, levels, pixel_values_BCYX):
        """Return some of the hidden states as maps (batch, model, h, w), after the final norm."""
        grid = self.grid_of(pixel_values_BCYX, interpolate=True)
        return [to_map(self.norm(hidden_states[level])[:, -grid[0] * grid[1] :], grid) for level in levels]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        selected_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Return `last_hidden_state` (batch, tokens, model): special tokens first, then patches row by row.

        With a pooler, also return `pooler_output` (batch, model). The last of `hidden_states` is not normalised yet, as
        in the stock ViT.
        pixel_values: (batch, channels, height, width).
        bool_masked_pos: (batch, patches), True for patches that the mask token replaces.
        interpolate_pos_encoding: fit the positions to images of another size than `image_size`.
        attention_mask: (batch, tokens), 0 for tokens to hide; or a finished mask (batch, 1, tokens, tokens).
        selected_positions: (batch, selected), tokens that the last layer computes, with the same values as otherwise.

        Raises ValueError for images of another size or number of channels.
        """
        hidden_BLD = self.embed(pixel_values, bool_masked_pos, bool(interpolate_pos_encoding))
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_BLD, attention_mask=attention_mask)
        masks = {"full_attention": mask}
        hidden_BLD = self.apply_layers(hidden_BLD, masks, None, selected_BS=selected_positions, **kwargs)
        pooled_BD = None if self.pooler is None else self.pooler(hidden_BLD)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_BLD, pooler_output=pooled_BD)


def enlarged(masked_BP, grid_size, patch_size):
    """Return a mask of patches as a mask of pixels, (batch, 1, height, width)."""
    masked_Bhw = masked_BP.unflatten(1, grid_size)
    return masked_Bhw.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2).unsqueeze(1)


class DeceroVisionForImageClassification(DeceroVisionPreTrainedModel):
    """Classify an image: Dosovitskiy et al. 2021, section 3.1; with two heads Touvron et al. 2021, section 4.

    The last layer computes only the tokens that a head reads, unless hidden states or attentions are asked for.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroVisionModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        if config.distillation_head:
            self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def read_tokens(self, pixel_values, **kwargs):
        """Return the positions of the tokens that the heads read, (batch, 1 or 2), or None for all tokens."""
        names = ("output_hidden_states", "output_attentions")
        if self.config.pooling == "mean" or any(kwargs.get(name, getattr(self.config, name)) for name in names):
            return None
        if self.config._attn_implementation not in ("sdpa", "eager", "matmul"):
            return None  # positions of a block mask cannot be selected
        count = 1 + self.config.distillation_head
        return torch.arange(count, device=pixel_values.device).expand(len(pixel_values), count)

    @can_return_tuple
    def forward(
        self, pixel_values=None, labels=None, interpolate_pos_encoding=None, attention_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:  # fmt: skip
        """Return logits (batch, labels) and, with labels, the loss.

        pixel_values: (batch, channels, height, width). labels: (batch,) class ids or numbers, or (batch, labels) of 0
        and 1, by `config.problem_type`. Other arguments: as in the bare model.
        """
        selected = self.read_tokens(pixel_values, **kwargs)
        outputs = self.model(pixel_values, None, interpolate_pos_encoding, attention_mask, selected, **kwargs)
        logits = self.classifier(pool(outputs.last_hidden_state, None, self.config.pooling))
        if self.config.distillation_head:
            logits = (logits + self.distillation_classifier(outputs.last_hidden_state[:, 1])) / 2
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroVisionForMaskedImageModeling(DeceroVisionPreTrainedModel):
    """Predict the pixels of masked patches by one matrix: SimMIM, Xie et al. 2022, section 3."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroVisionModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = nn.Linear(config.hidden_size, config.num_channels * config.patch_size**2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values=None, bool_masked_pos=None, interpolate_pos_encoding=None, attention_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:  # fmt: skip
        """Return the `reconstruction` (batch, channels, height, width) and, with a mask, the loss.

        bool_masked_pos: (batch, patches), True for masked patches. The loss is the mean absolute difference of their
        pixels. Other arguments: as in the bare model.
        """
        outputs = self.model(pixel_values, bool_masked_pos, interpolate_pos_encoding, attention_mask, **kwargs)
        grid, patch = self.model.grid_of(pixel_values, interpolate=True), self.config.patch_size
        rows_BPK = self.decoder(outputs.last_hidden_state[:, -grid[0] * grid[1] :])
        loss = None
        if bool_masked_pos is not None:
            apart_BPK = (patchify(pixel_values, patch) - rows_BPK).abs() * bool_masked_pos[..., None]
            loss = apart_BPK.sum() / (bool_masked_pos.sum() * rows_BPK.shape[-1]).clamp(min=1)
        return MaskedImageModelingOutput(
            loss=loss, reconstruction=F.pixel_shuffle(to_map(rows_BPK, grid), patch),
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip


class DeceroVisionForSemanticSegmentation(DeceroVisionPreTrainedModel):
    """Label each pixel: SETR, Zheng et al. 2021. `config.decode_head` chooses the way back to pixels."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroVisionModel(config, add_pooling_layer=False)
        self.decode_head = DECODE_HEADS[config.decode_head](config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values=None, labels=None, interpolate_pos_encoding=None, attention_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:  # fmt: skip
        """Return logits (batch, labels, height, width) and, with labels, the loss.

        Logits may be smaller than the image; the loss resizes them. labels: (batch, height, width),
        `config.semantic_loss_ignore_index` for pixels to ignore. Other arguments: as in the bare model.
        """
        items = kwargs.pop("num_items_in_batch", None)  # only for the loss
        outputs = self.model(pixel_values, None, interpolate_pos_encoding, attention_mask, **kwargs)
        maps = self.model.feature_maps(outputs.hidden_states, self.decode_head.levels, pixel_values)
        logits = self.decode_head(maps)
        loss = None
        if labels is not None:
            scores_BVYX = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
            ignored, reduction = self.config.semantic_loss_ignore_index, "mean" if items is None else "sum"
            loss = F.cross_entropy(scores_BVYX, labels.long(), ignore_index=ignored, reduction=reduction)
            loss = loss if items is None else loss / items
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroVisionBackbone(BackboneMixin, DeceroVisionPreTrainedModel):
    """Return maps of some layers, for models that read maps, such as DETR. Images may have any size."""

    def __init__(self, config):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.model = DeceroVisionModel(config, add_pooling_layer=False)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values, attention_mask=None, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Return `feature_maps`, one (batch, model, h, w) per entry of `config.out_features`."""
        outputs = self.model(pixel_values, None, True, attention_mask, **kwargs)
        maps = self.model.feature_maps(outputs.hidden_states, self.config.out_indices, pixel_values)
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
