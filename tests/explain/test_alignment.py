"""An alignment adds the pieces of source words, averages those of target words, and finds a planted copy."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from decero.errors import UserError
from decero.explain.alignment import align, words_of
from decero.explain.record import record
from decero.explain.recording import Attention, Piece, Recording
from decero.models import DeceroEncoderDecoderConfig


def pieces(text, cuts, begin="", end="</s>"):
    """Cut a text into pieces of these lengths, spaces left out, between special tokens."""
    found, at = [Piece(0, begin, None, None)] if begin else [], 0
    for length in cuts:
        at += len(text[at:]) - len(text[at:].lstrip())
        found.append(Piece(5, text[at : at + length], at, at + length))
        at += length
    return [*found, Piece(1, end, None, None)] if end else found


def recording(weights):
    """In To kyo , banks -> ban cos en Tokyo, and what follows."""
    source, target = "In Tokyo, banks", "bancos en Tokyo"
    keys = pieces(source, (2, 2, 3, 1, 5))
    queries = pieces(target, (3, 3, 2, 5), begin="<s>", end="")
    cross = Attention("cross", queries, keys, 2, 1, dict(enumerate(weights)))
    return Recording("m", "f", source, target, {"cross": cross})


def test_source_pieces_add_and_target_pieces_average():
    # rows predict ban, cos, en, Tokyo, and the end
    rows = [
        [0.0, 0.1, 0.1, 0.0, 0.7, 0.1],
        [0.1, 0.0, 0.0, 0.0, 0.5, 0.4],
        [0.6, 0.1, 0.1, 0.1, 0.0, 0.1],
        [0.3, 0.29, 0.29, 0.02, 0.0, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    ]
    found = align(recording([np.array([rows])]))
    assert [word.text for word in found.source] == ["In", "Tokyo", ",", "banks"]
    assert [word.text for word in found.target] == ["bancos", "en", "Tokyo"]
    expected = [[0.05, 0.1, 0.0, 0.6], [0.6, 0.2, 0.1, 0.0], [0.3, 0.58, 0.02, 0.0]]
    np.testing.assert_allclose(found.weights, expected, atol=1e-9)
    np.testing.assert_allclose(found.special, [0.25, 0.1, 0.1], atol=1e-9)
    assert found.links == [3, 0, 1]
    assert (found.anchors, found.found) == ([(2, 1)], 1)
    assert found.caveat("en").endswith("Of 1 words that occur once on both sides in the same spelling, it finds 1.")
    assert "encuentra 1" in found.caveat("es")


def test_layers_are_chosen_and_unknown_ones_are_refused():
    first, second = np.full((1, 5, 6), 1 / 6), np.eye(5, 6)[None]
    both = recording([first, second])
    np.testing.assert_allclose(align(both, layers=[1]).weights[1], [0, 1, 0, 0])  # row 2 looks at `kyo`
    np.testing.assert_allclose(
        align(both).weights, (align(both, layers=[0]).weights + align(both, layers=[1]).weights) / 2
    )
    with pytest.raises(UserError, match="no layer 2 in the cross-attention; there are 2, from 0 to 1"):
        align(both, layers=[2])
    with pytest.raises(UserError, match="no head 1 in the cross-attention; there are 1, from 0 to 0"):
        align(both, heads=[1])


def test_a_recording_without_a_translation_is_refused():
    alone = Recording("m", "f", "In Tokyo", None, {})
    with pytest.raises(UserError, match="needs cross-attention; use a model that translates"):
        align(alone)
    empty = recording([np.full((1, 5, 6), 1 / 6)])
    empty.text = "  "
    with pytest.raises(UserError, match="the text has no word"):
        align(empty)


@pytest.mark.parametrize(
    ("text", "cuts", "words"),
    [
        ("don't stop", (3, 2, 4), ["don't", "stop"]),
        ("¿Qué?¡Sí!", (1, 3, 2, 2, 1), ["¿", "Qué", "?¡", "Sí", "!"]),
        ("3.14 e\u0301l", (4, 3), ["3.14", "e\u0301l"]),
        ("東京です", (2, 2), ["東京です"]),
        ("cut off here", (3, 3), ["cut", "off"]),
        ("", (), []),
    ],
)
def test_words_hold_the_pieces_that_spell_them(text, cuts, words):
    found = words_of(text, pieces(text, cuts))
    assert [word.text for word in found] == words
    assert [n for word in found for n in word.pieces] == list(range(len(cuts)))


def copying_translator():
    """An encoder-decoder whose row i of the cross-attention looks at source token i + 1, behind [CLS]."""
    torch.manual_seed(0)
    config = DeceroEncoderDecoderConfig(
        vocab_size=97, hidden_size=150, num_hidden_layers=1, num_attention_heads=1, head_dim=97, intermediate_size=5,
        max_position_embeddings=53, position_embedding_type="learned", pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=False, decoder_start_token_id=2,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    encoder, decoder = model.model.encoder, model.model.decoder
    with torch.no_grad():
        for stack in (encoder, decoder):
            for weight in stack.layers.parameters():
                if weight.dim() > 1:
                    weight.zero_()
            for table, columns in (
                (stack.embed_tokens, slice(0, 97)),
                (stack.embed_positions.embed_positions, slice(97, 150)),
            ):
                table.weight.zero_()
                table.weight[:, columns] = torch.eye(columns.stop - columns.start)
        cross = decoder.layers[0].cross_attn
        cross.v_proj.weight[:, :97] = torch.eye(97)
        cross.o_proj.weight[:97] = torch.eye(97)
        cross.k_proj.weight[:53, 97:] = 9 * torch.eye(53)
        cross.q_proj.weight[1:53, 97:149] = 9 * torch.eye(52)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :97] = torch.eye(97)
    return model


def test_a_planted_copy_is_aligned_word_by_word(tokenizer):
    text = "market shares rose sharply in london"
    model = copying_translator()
    seen = record(model, tokenizer, text)
    assert seen.target == text  # it really copies
    found = align(seen)
    assert found.links == list(range(6))
    assert (len(found.anchors), found.found) == (6, 6)
    assert found.weights.diagonal().min() > 0.9
