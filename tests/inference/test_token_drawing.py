"""Pictures from image tokens: independent of the batch, as probable as the model says, guided, completed; bits."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from decero.data.image_tokens import PICTURE, ImageTokens
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.decoder_tokenizer import fit_decoder
from decero.inference.token_drawing import TokenPainter
from decero.models import DeceroDecoderConfig, DeceroDecoderForCausalLM

TOKENS = ImageTokens((2, 3), [[0], [128], [255]], ["bag", "ankle boot"])


def tokenizer_of(tokens):
    made = train_tokenizer(
        ["bag", "ankle boot"] * 3, algorithm="byte_level_bpe", vocab_size=275, model_max_length=30, show_progress=False
    )
    fit_decoder(made)
    tokens.add_to(made)
    return made


def painter_of(kind):
    torch.manual_seed(0)
    tokenizer = tokenizer_of(TOKENS)
    sizes = {"vocab_size": len(tokenizer) + 3, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=14, n_layer=2, n_head=2, n_positions=23, **sizes))
    else:
        more = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 11}
        model = DeceroDecoderForCausalLM(DeceroDecoderConfig(max_position_embeddings=23, **more, **sizes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return TokenPainter(model.eval(), tokenizer, TOKENS)


@pytest.fixture(scope="module", params=["ours", "gpt2"])
def painter(request):
    return painter_of(request.param)


def log_probabilities(painter, caption, indexes):
    """Log-probabilities of every token after a caption and some pixels, without a cache."""
    colors = painter.tokenizer.convert_tokens_to_ids(TOKENS.characters)
    ids = painter.prompt(caption) + [colors[each] for each in indexes]
    with torch.no_grad():
        return painter.model(torch.tensor([ids])).logits[0].double().log_softmax(-1), colors


def test_prompt_is_start_caption_and_picture(painter):
    words = painter.tokenizer("ankle boot", add_special_tokens=False)["input_ids"]
    assert painter.prompt("ankle boot") == [0, *words, painter.tokenizer.convert_tokens_to_ids(PICTURE)]
    assert painter.prompt("") == [0, painter.tokenizer.convert_tokens_to_ids(PICTURE)]


def test_picture_depends_on_its_number_and_caption_alone(painter):
    captions = ["bag", "ankle boot", "", "bag", "ankle boot"] * 9
    found = painter.draw(captions, seed=3)
    assert (painter.draw(captions[:4], seed=3) == found[:4]).all()
    assert (painter.draw([*captions[:2], "bag"], seed=3)[:2] == found[:2]).all()
    assert (painter.draw(captions, seed=4) != found).any()
    assert len(np.unique(found, axis=0)) > 5


@pytest.mark.long
def test_first_pixel_has_the_probabilities_of_the_model(painter):
    rows, colors = log_probabilities(painter, "bag", [])
    wanted = rows[-1, colors].softmax(-1).numpy()
    counts = np.bincount(painter.draw(["bag"] * 2048, seed=0)[:, 0], minlength=3) / 2048
    assert np.abs(counts - wanted).max() < 0.04
    cold = painter.draw(["bag"] * 8, seed=0, temperature=1e-3)
    assert (cold[:, 0] == wanted.argmax()).all()


def test_cold_picture_is_the_likeliest_at_each_pixel(painter):
    found = painter.draw(["ankle boot"], temperature=1e-3)[0]
    for place in range(TOKENS.pixels):
        rows, colors = log_probabilities(painter, "ankle boot", found[:place])
        assert rows[-1, colors].argmax() == found[place]


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_guidance_leads_away_from_no_caption(painter, guidance):
    found = painter.draw(["bag"], temperature=1e-3, guidance=guidance)[0]
    for place in range(TOKENS.pixels):
        (told, colors), (free, _) = (log_probabilities(painter, caption, found[:place]) for caption in ("bag", ""))
        assert (free[-1, colors] + guidance * (told[-1, colors] - free[-1, colors])).argmax() == found[place]


def test_given_pixels_stay_and_the_rest_follows_them(painter):
    given = np.array([[2, 0, 1], [1, 1, 1]], np.uint8)
    found = painter.draw(["bag", "bag"], temperature=1e-3, given_NG=given)
    assert (found[:, :3] == given).all()
    rows, colors = log_probabilities(painter, "bag", found[1, :3])
    assert rows[-1, colors].argmax() == found[1, 3]
    whole = np.array([[0, 1, 2, 2, 1, 0]], np.uint8)
    assert (painter.draw(["bag"], given_NG=whole) == whole).all()


def test_bits_are_those_of_the_whole_vocabulary(painter):
    indexes = np.array([[0, 1, 2, 2, 1, 0], [1, 1, 0, 2, 2, 2], [2, 0, 0, 0, 1, 1]], np.uint8)
    captions, seen = ["bag", "ankle boot", ""], []
    found = painter.bits(captions, indexes, 2, seen.append)
    assert found.shape == (3, 6)
    assert sum(seen) == 3
    for caption, row, bits in zip(captions, indexes, found, strict=True):
        rows, colors = log_probabilities(painter, caption, row)
        before = rows[len(painter.prompt(caption)) - 1 : -1]
        expected = [-before[place, colors[color]].item() / np.log(2) for place, color in enumerate(row)]
        assert bits == pytest.approx(expected, rel=1e-4)


def test_a_model_with_few_positions_gets_one_line():
    tokens = ImageTokens((5, 5), [[0], [255]], [])
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=4, n_layer=1, n_head=1, n_positions=23, vocab_size=300))
    with pytest.raises(UserError, match="a picture needs 27 positions, and the model has 23"):
        TokenPainter(model, tokenizer_of(tokens), tokens)


def test_nan_gets_one_line():
    painter = painter_of("gpt2")
    torch.nn.init.constant_(painter.model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(UserError, match="NaN or infinity"):
        painter.draw(["bag"])
    with pytest.raises(UserError, match="guidance -1: give a number"):
        painter.draw(["bag"], guidance=-1)
