"""Define the diffusion Transformer: it reads a noised image, a time and a class, and says where the pixels must move.

Dimensions: B batch, C channels, Y and X height and width in pixels, P patches, K values of a patch, D model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .configuration_diffusion import DeceroDiffusionConfig
from .diffusion_layers import DiffusionLayer, ModulatedNorm, Modulation, TimeEmbedding, ZeroLinear
from .modeling_stack import DeceroStack
from .patches import GRIDS, PatchStem, to_map


@dataclass
class DiffusionOutput(ModelOutput):
    """Hold the velocity of each pixel, (batch, channels, height, width), and what the layers showed."""

    velocity: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class DeceroDiffusionModel(DeceroStack):
    """Predict the velocity of pixels on the way from noise to an image.

    The layers and the form of the condition: DiT with adaLN-Zero, Peebles & Xie 2022, section 3.2. The velocity: flow
    matching, Lipman et al. 2023, eq. 23; rectified flow, Liu et al. 2023, eq. 1. At init it is zero everywhere.
    """

    config: DeceroDiffusionConfig
    config_class = DeceroDiffusionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _input_embed_layer = "stem"
    _no_split_modules = ["DiffusionLayer"]
    _can_record_outputs = {"hidden_states": DiffusionLayer, "attentions": SelfAttention}

    def __init__(self, config):
        super().__init__(config, DiffusionLayer, config.num_hidden_layers)
        self.norm = ModulatedNorm(config)
        self.final_modulation = Modulation(config, 2)
        self.decoder = ZeroLinear(config.hidden_size, config.num_channels * config.patch_size**2)
        self.post_init()

    def add_embeddings(self, config):
        self.stem = PatchStem(config)
        self.embed_positions = GRIDS[config.position_embedding_type](config)
        self.embed_time = TimeEmbedding(config)
        self.embed_classes = nn.Embedding(config.num_labels + 1, config.hidden_size)  # the last row: no class

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    @property
    def no_class(self):
        """The id that stands for no class: Ho & Salimans 2022, section 3.2."""
        return self.config.num_labels

    def condition(self, timestep_B, class_labels_B):
        """Return what the layers know of time and class, (batch, model)."""
        if class_labels_B is None:
            class_labels_B = torch.full(timestep_B.shape, self.no_class, device=timestep_B.device)
        return self.embed_time(timestep_B) + self.embed_classes(class_labels_B)

    def check_images(self, pixel_values_BCYX):
        """Raise ValueError for images of another size or number of channels."""
        expected = (self.config.num_channels, *self.config.picture_size)
        if tuple(pixel_values_BCYX.shape[1:]) != expected:
            given, wanted = (" x ".join(map(str, each)) for each in (pixel_values_BCYX.shape[1:], expected))
            raise ValueError(f"images are {given} (channels, height, width), but the model reads {wanted}; resize them")

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        timestep: torch.FloatTensor,
        class_labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DiffusionOutput:
        """Return the velocity of each pixel, the derivative of the image by the time.

        pixel_values: (batch, channels, height, width), (1 - time) x noise + time x image. timestep: (batch,), 0 is pure
        noise, 1 the image. class_labels: (batch,); `no_class`, or None for all, for an image of any class.

        Raises ValueError for images of another size or number of channels.
        """
        self.check_images(pixel_values)
        hidden_BPD = self.stem(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)
        hidden_BPD = self.dropout(hidden_BPD + self.embed_positions(self.config.grid_size, hidden_BPD))
        condition_BD = self.condition(timestep, class_labels)
        for layer in self.layers:
            hidden_BPD = layer(hidden_BPD, condition_BD=condition_BD, **kwargs)
        rows_BPK = self.decoder(self.norm(hidden_BPD, *self.final_modulation(condition_BD)))
        velocity_BCYX: Any = F.pixel_shuffle(to_map(rows_BPK, self.config.grid_size), self.config.patch_size)
        return DiffusionOutput(velocity=velocity_BCYX)
