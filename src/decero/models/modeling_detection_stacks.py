"""Define the two stacks of a detector: an encoder reads the places of an image, a decoder turns queries into objects.

Dimensions: B batch, h and w height and width of a map, M its places (h x w), Q queries, G groups of denoising
queries, T objects, D model.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import CrossAttention, SelfAttention
from .configuration_object_detection import DeceroDetectionConfig
from .detection_parts import Corrections, DecodedQueries, Perceptron, coordinate_positions
from .detection_queries import AnchorBoxes, BoxBias, denoising_mask, prior_mask, tiled_boxes
from .layers import DecoderLayer, EncoderLayer, build_norm
from .modeling_stack import DeceroPreTrainedModel, DeceroStack


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
        "hidden_states": [EncoderLayer, QueryLayer],
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
        if not config.proposals:
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
        return self.embed_anchors(waves_BQD.to(self.embed_classes.weight.dtype))

    def first_queries(self, batch, proposed):
        """Return states and anchors of the queries that look for objects.

        Without proposals, a query begins with a trained box and the embedding of an unknown class. With them, it begins
        with a likely box and the mean of the class embeddings, weighted by the probabilities of the proposal.
        """
        classes_VD = self.embed_classes.weight
        if proposed is None:
            return classes_VD[-1].repeat(batch, self.config.num_queries, 1), self.anchors.weight.repeat(batch, 1, 1)
        logits_BMV, anchors_BM4 = (each.detach() for each in proposed)
        share_BMV = logits_BMV.float().softmax(dim=-1)
        likeliest_BM = share_BMV[..., :-1].amax(dim=-1)
        best_BQ1 = likeliest_BM.topk(min(self.config.num_queries, likeliest_BM.shape[1])).indices[..., None]
        states_BQD = share_BMV.take_along_dim(best_BQ1, 1).to(classes_VD.dtype) @ classes_VD
        return states_BQD, anchors_BM4.take_along_dim(best_BQ1, 1).to(classes_VD.dtype)

    def start(self, batch, classes_BGT=None, boxes_BGT4=None, proposed=None):
        """Return the first states, anchors and mask of all queries; the denoising ones come last.

        proposed: logits (batch, places, labels + 1) and boxes before the sigmoid, or None.
        Raises ValueError for denoising queries of a model whose queries are no boxes, and for one of the two arguments.
        """
        if (classes_BGT is None) != (boxes_BGT4 is None):
            raise ValueError("denoising_classes and denoising_boxes go together; give both")
        if self.config.queries == "learned":
            if classes_BGT is not None:
                raise ValueError("queries are learned positions and cannot denoise boxes; set queries: anchors")
            zeros_BQD = torch.zeros_like(self.query_positions.weight).expand(batch, -1, -1)
            return zeros_BQD, None, None
        hidden_BQD, anchors_BQ4 = self.first_queries(batch, proposed)
        if classes_BGT is None:
            return hidden_BQD, anchors_BQ4, None
        noised_BND = self.embed_classes(classes_BGT.clamp(min=0).flatten(1))
        noised_BN4 = boxes_BGT4.flatten(1, 2).to(anchors_BQ4.dtype).logit(eps=1e-4)
        mask = denoising_mask(hidden_BQD.shape[1], classes_BGT >= 0)
        return torch.cat((hidden_BQD, noised_BND), 1), torch.cat((anchors_BQ4, noised_BN4), 1), mask

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, memory_BMD, memory_positions_BMD, memory_seen_BM=None, denoising_classes=None, denoising_boxes=None,
        places_Bhw2=None, proposed=None, **kwargs: Unpack[TransformersKwargs],
    ) -> DecodedQueries:  # fmt: skip
        """Return states and boxes of every layer. A layer corrects the boxes that it gets (anchors), or says new ones.

        memory_BMD, memory_positions_BMD: (batch, places, model). memory_seen_BM: None, or True for places to read.
        places_Bhw2: row and column of the places as shares of the image, for `anchor_prior`.
        proposed: as in `start`.
        """
        hidden_BQD, anchors_BQ4, mask = self.start(len(memory_BMD), denoising_classes, denoising_boxes, proposed)
        hidden_BQD = hidden_BQD.to(memory_BMD.dtype)
        memory_mask, backend = None, self.config._attn_implementation
        if self.config.anchor_prior and ("flash" in backend or "flex" in backend):
            raise ValueError(f"{backend} does not support anchor_prior; use sdpa or eager")
        if memory_seen_BM is not None:
            memory_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_BQD, attention_mask=memory_seen_BM,
                encoder_hidden_states=memory_BMD,
            )  # fmt: skip
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
            logits_BQ4 = self.bbox_predictor(state_BQD)
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
