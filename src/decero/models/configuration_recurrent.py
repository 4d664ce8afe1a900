"""Define the configurations of networks from before the Transformer."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .compatibility import EmptyAutoMap


@strict
class DeceroRecurrentConfig(PreTrainedConfig):
    r"""Configure a recurrent network: language model, classifier, tagger (Merity et al. 2018, without weight drop).

    Args:
        mixer_type: cell of all layers.
        bidirectional: read in both directions, half of the width each, as classifiers and taggers do. A language model
            reads in one.
        embedding_dropout, hidden_dropout_prob, output_dropout: before the first layer, between layers, after the last.
            One mask serves all positions of a text (Gal & Ghahramani 2016).
        classifier_pooling: the classifier reads the maximum over the text (Conneau et al. 2017) or the mean.
    """

    model_type = "decero_recurrent"
    auto_map = EmptyAutoMap()
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 30522
    hidden_size: int = 256
    num_hidden_layers: int = 2
    mixer_type: Literal["lstm", "gru", "rnn"] = "lstm"
    bidirectional: bool = False
    embedding_dropout: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0
    output_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["max", "mean"] = "max"
    initializer_range: float = 0.06
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_directions(self):
        """Raise ValueError if the width cannot be halved."""
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even: each direction has half of the width")


@strict
class DeceroRecurrentSeq2SeqConfig(DeceroRecurrentConfig):
    r"""Configure an encoder-decoder of LSTMs with additive attention (Bahdanau et al. 2015).

    Args:
        num_hidden_layers, decoder_layers: layers of encoder and decoder; None: the same number.
        attention_size: width of the layer that compares states; None: hidden_size.
        decoder_start_token_id: first token that the decoder reads; None: `pad_token_id`.
    """

    model_type = "decero_recurrent_seq2seq"
    auto_map = EmptyAutoMap()

    mixer_type: Literal["lstm"] = "lstm"
    bidirectional: Literal[True] = True
    decoder_layers: int | None = None
    attention_size: int | None = None
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        self.decoder_layers = self.decoder_layers or self.num_hidden_layers
        self.attention_size = self.attention_size or self.hidden_size
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        super().__post_init__(**kwargs)


@strict
class DeceroTextCNNConfig(PreTrainedConfig):
    r"""Configure a convolutional network for classification (Kim 2014).

    Args:
        filter_sizes: tokens that the filters of each kind see. num_filters: filters of each kind.
    """

    model_type = "decero_textcnn"
    auto_map = EmptyAutoMap()
    mixer_type = "conv"
    num_hidden_layers = 1

    vocab_size: int = 30522
    hidden_size: int = 300
    filter_sizes: list[int] | tuple[int, ...] = (3, 4, 5)
    num_filters: int = 100
    classifier_dropout: float | int = 0.5
    initializer_range: float = 0.06
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_filters(self):
        """Raise ValueError for a filter that sees nothing."""
        if not self.filter_sizes or min(self.filter_sizes) < 1:
            raise ValueError(f"filter_sizes {list(self.filter_sizes)} must hold numbers of at least 1")
