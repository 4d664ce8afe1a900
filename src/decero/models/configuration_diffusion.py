"""Define the configuration of models that draw images."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_vision import PictureConfig


@strict
class DeceroDiffusionConfig(PictureConfig):
    r"""Configure a diffusion Transformer (DiT: Peebles & Xie 2022).

    The classes of the images are `id2label`. Pixels lie in [-1, 1].

    Args:
        position_embedding_type: `sinusoidal`, half of the features for the row and half for the column, as in DiT, or
            `learned`, a vector per patch. Both are added to the embeddings.
        time_frequency_size: number of sines and cosines that stand for the time.
    """

    model_type = "decero_diffusion"
    num_special_tokens = 0

    position_embedding_type: Literal["sinusoidal", "learned"] = "sinusoidal"
    time_frequency_size: int = 256

    def validate_layers(self):
        """Raise ValueError for layers whose norms cannot take shift and scale from the time."""
        if self.norm_placement != "pre" or self.norm_type != "layernorm" or self.final_norm is False:
            raise ValueError("the time shifts and scales each norm: set norm_placement pre and norm_type layernorm")
        if self.embedding_norm:
            raise ValueError("embedding_norm replaces the first norm, which the time has to shift; set it to false")
        if self.time_frequency_size < 2 or self.time_frequency_size % 2:
            raise ValueError(f"time_frequency_size {self.time_frequency_size} must be even: pairs of sine and cosine")
