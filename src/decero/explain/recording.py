"""What one forward pass of a model showed: tokens, attention weights, hidden states, logits."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["self", "causal", "cross"]  # of an encoder, of a decoder, from a decoder to its source


@dataclass(frozen=True)
class Piece:
    """One token, as a reader sees it: the text that it covers, not `Ġ` or `Ã±`.

    text: the characters that the token covers; a special token keeps its name, for example `[CLS]`.
        A space that the tokenizer added is a space, and covers nothing: start is end.
    start, end: characters of the text, half open; None for a special token.
    segment: 1 for a piece of the second text of a pair, else 0.
    """

    id: int
    text: str
    start: int | None
    end: int | None
    segment: int = 0

    @property
    def special(self) -> bool:
        """Whether the tokenizer added this token."""
        return self.start is None


@dataclass
class Attention:
    """The attention weights of one kind, all layers.

    weights: layer -> (heads, queries, keys), float32; each row sums to 1.
        Layers that were not asked for are absent.
    value_norms: layer -> the same shape: the norm of (weight x value x output projection) of each head and key
        (Kobayashi et al. 2020, arXiv:2004.10102, section 3). Empty when it was not asked for or the family hides it.
    queries, keys: which pieces stand on the rows and on the columns.
    """

    kind: Kind
    queries: list[Piece]
    keys: list[Piece]
    num_layers: int
    num_heads: int
    weights: dict[int, np.ndarray]
    value_norms: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class HiddenStates:
    """The residual stream of one stack.

    states: index 0 is what the first layer reads, index i what layer i writes: (length, hidden size), float32.
    final_normed: whether the last one is what the stack returns (BERT: yes). GPT-2, Llama and ViT norm it once more,
        so their last one is not `hidden_states[-1]` of transformers.
    """

    stack: Literal["encoder", "decoder"]
    pieces: list[Piece]
    states: list[np.ndarray]
    final_normed: bool


@dataclass
class Recording:
    """Hold all that one text showed in one forward pass, in evaluation mode and without padding.

    attentions: kind -> Attention. An encoder has `self`, a decoder `causal`, an encoder-decoder all three.
    hidden: `encoder` and `decoder`, as far as the model has them. Empty when they were not asked for.
    logits: (length, vocabulary) of a language model, (1, classes) of a classifier; None when the model has no head.
    text_b: the second text of a pair. picture: whether `text` is the path of a picture that was read.
    notes: sentences for the reader of the page, for example that a layer sees a window of 128 tokens.
    """

    model: str
    family: str
    text: str
    target: str | None
    attentions: dict[Kind, Attention]
    hidden: dict[str, HiddenStates] = field(default_factory=dict)
    logits: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    text_b: str | None = None
    picture: bool = False
