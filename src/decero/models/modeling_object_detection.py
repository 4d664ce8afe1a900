"""Define the detector of objects: an encoder reads an image, a decoder finds its objects, all at once.

Dimensions: B batch, C channels, Y and X height and width in pixels, h and w the same on the map, M places of the map
(h x w), Q queries, G groups of denoising queries, T objects, D model, V labels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import CrossAttention, SelfAttention
from .configuration_object_detection import DeceroDetectionConfig
from .detection_parts import (
    AnchorBoxes,
    BackboneStem,
    BoxBias,
    Corrections,
    DeceroDetectionModelOutput,
    DeceroObjectDetectionOutput,
    DecodedQueries,
    Perceptron,
    coordinate_positions,
    denoising_mask,
    places,
    prior_mask,
    tiled_boxes,
)
from .layers import DecoderLayer, EncoderLayer, build_norm
from .modeling_stack import DeceroPreTrainedModel, DeceroStack
from .patches import STEMS


class QueryLayer(DecoderLayer):
    """Let all queries see each other: a set has no order."""

    is_causal = False


class DeceroDetectionPreTrainedModel(DeceroPreTrainedModel):
    """Define what all classes that find objects share."""

    config: DeceroDetectionConfig
    config_class = DeceroDetectionConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _input_embed_layer = "stem"
    _no_split_modules = ["EncoderLayer", "QueryLayer"]
    _can_record_outputs = {
        "hidden_states": (EncoderLayer, QueryLayer),
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module):
        """Start anchors as boxes that cover the image, and their corrections at 0 (Zhu et al. 2021, appendix A.4)."""
        super()._init_weights(module)
        if isinstance(module, AnchorBoxes):
            init.copy_(module.weight, tiled_boxes(len(module.weight)).logit(eps=1e-4))
        if isinstance(module, Corrections):
            init.zeros_(module.weight)
            init.zeros_(module.bias)


class DeceroDetectionEncoder(DeceroDetectionPreTrainedModel, DeceroStack):
    """Apply encoder layers to the places of a map, with their positions in each layer."""

    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": OutputRecorder(SelfAttention, index=1)}

    def __init__(self, config):
        super().__init__(config, EncoderLayer, config.num_hidden_layers)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, hidden_BMD, positions_BMD, mask=None, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Return `last_hidden_state` (batch, places, model). mask: None, or (batch, 1, places, places)."""
        hidden_BMD = self.dropout(hidden_BMD)
        masks = {"full_attention": mask}
        return BaseModelOutput(
            last_hidden_state=self.apply_layers(hidden_BMD, masks, None, positions_BLD=positions_BMD, **kwargs)
        )


class DeceroDetectionDecoder(DeceroDetectionPreTrainedModel, DeceroStack):
    """Turn queries into objects, layer by layer: Carion et al. 2020, section 3.2; anchors: Liu et al. 2022."""

    _can_record_outputs = {
        "hidden_states": QueryLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config):
        super().__init__(config, QueryLayer, config.decoder_layers)
        self.norm = build_norm(config)  # the heads read normalised states, whatever the layers do
        last = Corrections if config.queries == "anchors" else nn.Linear
        self.bbox_predictor = Perceptron(*[config.hidden_size] * 3, 4, last=last)
        self.post_init()

    def add_embeddings(self, config):
        D, Q = config.hidden_size, config.num_queries
        if config.queries == "learned":
            self.query_positions = nn.Embedding(Q, D)
            return
        self.anchors = AnchorBoxes(Q, 4)
        self.embed_classes = nn.Embedding(config.num_labels + 1, D)  # the last: a class that is not known yet
        self.embed_anchors = Perceptron(2 * D, D, D)
        if config.box_bias:
            self.box_biases = nn.ModuleList(BoxBias(config) for _ in range(config.decoder_layers))

    def positions_of(self, anchors_BQ4):
        """Return the positions of queries (batch, queries, model), from their boxes before the sigmoid."""
        x, y, width, height = anchors_BQ4.float().sigmoid().unbind(-1)
        shares_BQ4, temperature = torch.stack((y, x, height, width), dim=-1), self.config.position_temperature
        waves_BQD = coordinate_positions(shares_BQ4, self.config.hidden_size, temperature)
        return self.embed_anchors(waves_BQD.to(self.anchors.weight.dtype))

    def start(self, batch, classes_BGT=None, boxes_BGT4=None):
        """Return the first states, anchors and mask of all queries; the denoising ones come last.

        Raises ValueError for denoising queries of a model whose queries are no boxes, and for one of the two arguments.
        """
        if (classes_BGT is None) != (boxes_BGT4 is None):
            raise ValueError("denoising_classes and denoising_boxes go together; give both")
        if self.config.queries == "learned":
            if classes_BGT is not None:
                raise ValueError("queries are learned positions and cannot denoise boxes; set queries: anchors")
            zeros_BQD = torch.zeros_like(self.query_positions.weight).expand(batch, -1, -1)
            return zeros_BQD, None, None
        hidden_BQD = self.embed_classes.weight[-1].repeat(batch, self.config.num_queries, 1)
        anchors_BQ4 = self.anchors.weight.repeat(batch, 1, 1)
        if classes_BGT is None:
            return hidden_BQD, anchors_BQ4, None
        noised_BND = self.embed_classes(classes_BGT.clamp(min=0).flatten(1))
        noised_BN4 = boxes_BGT4.flatten(1, 2).to(anchors_BQ4.dtype).logit(eps=1e-4)
        mask = denoising_mask(self.config.num_queries, classes_BGT >= 0)
        return torch.cat((hidden_BQD, noised_BND), 1), torch.cat((anchors_BQ4, noised_BN4), 1), mask

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, memory_BMD, memory_positions_BMD, memory_seen_BM=None, denoising_classes=None, denoising_boxes=None,
        places_Bhw2=None, **kwargs: Unpack[TransformersKwargs],
    ) -> DecodedQueries:  # fmt: skip
        """Return states and boxes of every layer. A layer corrects the boxes that it gets (anchors), or says new ones.

        memory_BMD, memory_positions_BMD: (batch, places, model). memory_seen_BM: None, or True for places to read.
        places_Bhw2: row and column of the places as shares of the image, for `anchor_prior`.
        """
        hidden_BQD, anchors_BQ4, mask = self.start(len(memory_BMD), denoising_classes, denoising_boxes)
        hidden_BQD = hidden_BQD.to(memory_BMD.dtype)
        memory_mask, backend = None, self.config._attn_implementation
        if self.config.anchor_prior and ("flash" in backend or "flex" in backend):
            raise ValueError(f"{backend} does not support anchor_prior; use sdpa or eager")
        if memory_seen_BM is not None:
            memory_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_BQD, attention_mask=memory_seen_BM,
                encoder_hidden_states=memory_BMD,
            )  # fmt: skip
        if self.config.value_positions:
            memory_BMD, memory_positions_BMD = memory_BMD + memory_positions_BMD, None
        states, boxes = [], []
        for number, layer in enumerate(self.layers):
            positions_BQD = self.query_positions.weight if anchors_BQ4 is None else self.positions_of(anchors_BQ4)
            if self.config.anchor_prior:
                bias = self.box_biases[number] if self.config.box_bias else None
                memory_mask = prior_mask(anchors_BQ4, places_Bhw2, memory_seen_BM, hidden_BQD.dtype, bias)
            hidden_BQD = layer(
                hidden_BQD, mask, None, memory_BMD, memory_mask, positions_BLD=positions_BQD.to(hidden_BQD.dtype),
                memory_positions_BMD=memory_positions_BMD, **kwargs,
            )  # fmt: skip
            state_BQD = self.norm(hidden_BQD)
            if self.config.carry_norm:
                hidden_BQD = state_BQD
                state_BQD = self.norm(state_BQD) if layer is self.layers[-1] else state_BQD
            read_BQD = state_BQD + positions_BQD if self.config.value_positions else state_BQD
            logits_BQ4 = self.bbox_predictor(read_BQD)
            if anchors_BQ4 is not None:
                logits_BQ4 = logits_BQ4 + anchors_BQ4
                # Each layer is judged by its own correction, if it is judged at all.
                anchors_BQ4 = logits_BQ4.detach() if self.config.auxiliary_loss else logits_BQ4
            states.append(state_BQD)
            boxes.append(logits_BQ4.sigmoid())
        return DecodedQueries(
            last_hidden_state=states[-1], intermediate_hidden_states=torch.stack(states),
            intermediate_boxes=torch.stack(boxes),
        )  # fmt: skip


class DeceroDetectionModel(DeceroDetectionPreTrainedModel):
    """Join stem, encoder and decoder: Carion et al. 2020, figure 2, without the head of classes."""

    def __init__(self, config):
        super().__init__(config)
        self.stem = BackboneStem(config) if config.stem == "backbone" else STEMS[config.stem](config)
        self.encoder = DeceroDetectionEncoder(config)
        self.decoder = DeceroDetectionDecoder(config)
        self.post_init()

    def read(self, pixel_values_BCYX):
        """Return the map of an image, (batch, model, h, w). Raises ValueError for another number of channels."""
        channels, expected, side = pixel_values_BCYX.shape[1], self.config.num_channels, self.config.patch_size
        if channels != expected:
            raise ValueError(f"images have {channels} channels, but num_channels is {expected}; convert the images")
        if self.config.stem == "patch":  # zeros to the right and below fill the last patches
            Y, X = pixel_values_BCYX.shape[2:]
            pixel_values_BCYX = F.pad(pixel_values_BCYX, (0, -X % side, 0, -Y % side))
        return self.stem(pixel_values_BCYX.to(self.dtype))

    @can_return_tuple
    def forward(
        self, pixel_values=None, pixel_mask=None, denoising_classes=None, denoising_boxes=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DeceroDetectionModelOutput:  # fmt: skip
        """Return `last_hidden_state` (batch, queries, model) and states and boxes of all layers of the decoder.

        pixel_values: (batch, channels, height, width), of any size. pixel_mask: (batch, height, width), 0 for padding.
        denoising_classes: (batch, groups, objects), class ids, below 0 for padding. denoising_boxes: (batch, groups,
        objects, 4), centre and size as shares of the image. Their queries come after the others.
        """
        hidden_BDhw = self.read(pixel_values)
        size, hidden_BMD = hidden_BDhw.shape[2:], hidden_BDhw.flatten(2).transpose(1, 2)
        seen_Bhw, seen_BM, mask = hidden_BDhw.new_ones(1, *size, dtype=torch.bool), None, None
        if pixel_mask is not None:
            seen_Bhw = F.interpolate(pixel_mask[None].float(), size=size)[0].bool()
            seen_BM = seen_Bhw.flatten(1)
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_BMD, attention_mask=seen_BM)
        places_BM2 = places(seen_Bhw, centred=self.config.queries == "anchors")
        waves_BMD = coordinate_positions(places_BM2, self.config.hidden_size, self.config.position_temperature)
        positions_BMD = waves_BMD.to(hidden_BMD.dtype)
        encoded = self.encoder(hidden_BMD, positions_BMD, mask, **kwargs)
        decoded = self.decoder(
            encoded.last_hidden_state, positions_BMD, seen_BM, denoising_classes, denoising_boxes,
            places_BM2.unflatten(1, size), **kwargs,
        )  # fmt: skip
        return DeceroDetectionModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            intermediate_hidden_states=decoded.intermediate_hidden_states,
            intermediate_boxes=decoded.intermediate_boxes,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class DeceroDetectionForObjectDetection(DeceroDetectionPreTrainedModel):
    """Find objects in images: their classes, or none, and their boxes (Carion et al. 2020)."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroDetectionModel(config)
        self.class_labels_classifier = nn.Linear(config.hidden_size, config.num_labels + 1)  # the last: no object
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values=None, pixel_mask=None, labels=None, denoising_classes=None, denoising_boxes=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DeceroObjectDetectionOutput:  # fmt: skip
        """Return logits (batch, queries, labels + 1), the last for no object, and `pred_boxes` (batch, queries, 4).

        Boxes are centre and size as shares of the image. With `config.auxiliary_loss` also return both for the layers
        before the last. labels: one {class_labels (objects,), boxes (objects, 4)} an image, for the loss of the stock
        DETR. Denoising queries: as in the bare model; their answers are `denoising_outputs`, shaped like them.
        """
        outputs = self.model(pixel_values, pixel_mask, denoising_classes, denoising_boxes, **kwargs)
        states, boxes = outputs.intermediate_hidden_states, outputs.intermediate_boxes
        if not self.config.auxiliary_loss:
            states, boxes = states[-1:], boxes[-1:]
        logits, Q = self.class_labels_classifier(states), self.config.num_queries
        found = [{"logits": a[:, :Q], "pred_boxes": b[:, :Q]} for a, b in zip(logits, boxes, strict=True)]
        denoised = None
        if denoising_classes is not None:
            groups = denoising_classes.shape[1:]
            denoised = [
                {"logits": a[:, Q:].unflatten(1, groups), "pred_boxes": b[:, Q:].unflatten(1, groups)}
                for a, b in zip((logits[-1], *logits[:-1]), (boxes[-1], *boxes[:-1]), strict=True)
            ]
        loss = parts = None
        if labels is not None:
            loss, parts, _ = self.loss_function(
                found[-1]["logits"], labels, self.device, found[-1]["pred_boxes"], self.config, logits[:, :, :Q],
                boxes[:, :, :Q],
            )  # fmt: skip
        names = [name for name in outputs if name not in ("intermediate_hidden_states", "intermediate_boxes")]
        return DeceroObjectDetectionOutput(
            loss=loss, loss_dict=parts, **found[-1], auxiliary_outputs=found[:-1] if len(found) > 1 else None,
            denoising_outputs=denoised, **{name: outputs[name] for name in names},
        )  # fmt: skip
