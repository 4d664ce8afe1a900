"""Define the detector of objects: an encoder reads an image, a decoder finds its objects, all at once.

Dimensions: B batch, C channels, Y and X height and width in pixels, h and w the same on the map, M places of the map
(h x w), Q queries, G groups of denoising queries, T objects, D model, V labels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .detection_parts import (
    BackboneStem,
    DeceroDetectionModelOutput,
    DeceroObjectDetectionOutput,
    coordinate_positions,
    places,
)
from .detection_queries import Proposals
from .modeling_detection_stacks import DeceroDetectionDecoder, DeceroDetectionEncoder, DeceroDetectionPreTrainedModel
from .patches import STEMS


class DeceroDetectionModel(DeceroDetectionPreTrainedModel):
    """Join stem, encoder and decoder: Carion et al. 2020, figure 2, without the head of classes."""

    def __init__(self, config):
        super().__init__(config)
        self.stem = BackboneStem(config) if config.stem == "backbone" else STEMS[config.stem](config)
        self.encoder = DeceroDetectionEncoder(config)
        self.decoder = DeceroDetectionDecoder(config)
        self.proposals = Proposals(config) if config.proposals else None
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
        memory_BMD = encoded.last_hidden_state
        proposed = None if self.proposals is None else self.proposals(memory_BMD, places_BM2, seen_BM)
        decoded = self.decoder(
            memory_BMD, positions_BMD, seen_BM, denoising_classes, denoising_boxes, places_BM2.unflatten(1, size),
            proposed, **kwargs,
        )  # fmt: skip
        return DeceroDetectionModelOutput(
            proposal_logits=None if proposed is None else proposed[0],
            proposal_boxes=None if proposed is None else proposed[1].sigmoid(),
            last_hidden_state=decoded.last_hidden_state,
            intermediate_hidden_states=decoded.intermediate_hidden_states,
            intermediate_boxes=decoded.intermediate_boxes,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory_BMD,
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
        logits = self.class_labels_classifier(states)
        Q = states.shape[2] if denoising_classes is None else states.shape[2] - denoising_classes[0].numel()
        found = [{"logits": a[:, :Q], "pred_boxes": b[:, :Q]} for a, b in zip(logits, boxes, strict=True)]
        if outputs.proposal_logits is not None:  # judged like a layer before the first
            found.insert(0, {"logits": outputs.proposal_logits, "pred_boxes": outputs.proposal_boxes})
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
            if outputs.proposal_logits is not None:
                said = found[0]["logits"], found[0]["pred_boxes"]
                more, its_parts, _ = self.loss_function(
                    said[0], labels, self.device, said[1], self.config, said[0][None], said[1][None]
                )
                loss, parts = loss + more, parts | {f"{name}_proposals": part for name, part in its_parts.items()}
        own = "intermediate_hidden_states", "intermediate_boxes", "proposal_logits", "proposal_boxes"
        names = [name for name in outputs if name not in own]
        return DeceroObjectDetectionOutput(
            loss=loss, loss_dict=parts, **found[-1], auxiliary_outputs=found[:-1] if len(found) > 1 else None,
            denoising_outputs=denoised, **{name: outputs[name] for name in names},
        )  # fmt: skip
