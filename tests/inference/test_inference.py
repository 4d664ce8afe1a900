"""Answers come in order and equal those of each text alone."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.inference.conftest import BOTH, COMMAND_OF, IDS, SIZES, T5, WRITERS
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5Config,
    XLNetConfig,
    XLNetLMHeadModel,
    pipeline,
)

from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.inference import classify, commands_of, fill, generate, load, translate
from decero.inference.generation import cut_off
from decero.models import DeceroEncoderConfig

TEXTS = ["banks gained", "", "the market rose sharply on monday after profit news from tokyo", "  ", "shares fell"]


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("command", WRITERS)
def test_each_text_is_answered_as_alone_and_an_empty_one_empty(command, whose, checkpoint):
    write, kind = WRITERS[command]
    model = load(checkpoint(kind, whose), command)
    found = list(write(model, TEXTS, max_new_tokens=7))
    assert found == [next(write(model, [text], max_new_tokens=7)) for text in TEXTS]
    assert [bool(answer) for answer in found] == [True, False, True, False, True]
    assert len(set(found)) >= 3  # random weights; the empty answer is one
    assert list(write(model, TEXTS, max_new_tokens=7, batch_tokens=30, first_window=2)) == found


@BOTH
def test_translate_writes_what_transformers_does(whose, checkpoint):
    folder = checkpoint("seq2seq", whose)
    loaded = load(folder, "translate")
    stock = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    read = loaded.tokenizer("banks gained", return_tensors="pt")
    for beams in (1, 3):
        ids = stock.generate(
            read["input_ids"], attention_mask=read["attention_mask"], max_new_tokens=7, num_beams=beams, do_sample=False
        )
        expected = loaded.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        assert list(translate(folder, ["banks gained"], max_new_tokens=7, beams=beams)) == [expected]


@pytest.mark.parametrize(
    ("algorithm", "text", "piece"),
    [
        ("byte_level_bpe", "shares fell <mask>", "."), ("byte_level_bpe", "shares ris<mask> now", "ing"),
        ("byte_level_bpe", "shares ris <mask> now", "ing"), ("byte_level_bpe", "the<mask> bank", "Ġof"),
        ("unigram", "shares ris [MASK] now", "in"), ("unigram", "the[MASK] bank", "▁t"),
        ("wordpiece", "shares ris [MASK] now", "##ing"), ("wordpiece", "the [MASK] bank", "of"),
    ],
)  # fmt: skip
def test_a_hole_gets_the_spaces_of_the_pipeline(algorithm, text, piece, tmp_path):
    lines = ["shares rising now", "the of bank fell.", "ing ing of of rising falling gaining trading"] * 9
    tokenizer = train_tokenizer(
        lines, algorithm=algorithm, vocab_size=300, model_max_length=53, min_frequency=1, show_progress=False
    )
    assert piece in tokenizer.get_vocab()
    config = DeceroEncoderConfig(**SIZES | {"vocab_size": len(tokenizer)}, head_dim=14)
    model = AutoModelForMaskedLM.from_config(config)
    model.get_output_embeddings().bias.data[tokenizer.convert_tokens_to_ids(piece)] = 100
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (found,) = fill(tmp_path, [text])
    assert found.text == pipeline("fill-mask", model=model, tokenizer=tokenizer)(text)[0]["sequence"]


def test_a_decoder_without_room_is_told_so(checkpoint):
    """More tokens would not help: the model has 53 positions."""
    model = load(checkpoint("seq2seq", "ours"), "translate").model
    assert cut_off(model, 53, 200).endswith(
        "cut off at 53 new tokens: the model has no more positions; shorten the text"
    )
    assert cut_off(model, 7, 7).endswith("cut off at 7 new tokens; raise --max-new-tokens")


@torch.no_grad()
def test_beams_of_a_t5_with_a_deeper_decoder(tokenizer, tmp_path):
    """The cache of `generate` has the layers of the encoder, so it cannot be used."""
    config = T5Config(**T5 | {"num_layers": 1}, num_decoder_layers=3, **IDS, decoder_start_token_id=0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    read = tokenizer("banks gained", return_tensors="pt")["input_ids"]
    ids = model.generate(read, max_new_tokens=5, num_beams=2, do_sample=False, use_cache=False)
    wanted = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert list(translate(tmp_path, ["banks gained"], beams=2, max_new_tokens=5)) == [wanted]


def test_a_prompt_does_not_end_before_the_model_goes_on(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    ids = loaded.tokenizer("banks gained")["input_ids"]
    assert ids[-1] == loaded.tokenizer.sep_token_id
    written = loaded.model.generate(torch.tensor([ids[:-1]]), max_new_tokens=7, do_sample=False)[0, len(ids) - 1 :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, ["banks gained"], max_new_tokens=7)) == [expected]


@BOTH
def test_fill_gives_the_likeliest_tokens_of_each_hole(whose, checkpoint):
    folder = checkpoint("masked", whose)
    loaded = load(folder, "fill")
    texts = ["the [MASK] rose after <mask> news", "", "shares fell", "[MASK] gained"]
    found = list(fill(loaded, texts, top_k=3))
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    read = loaded.tokenizer(texts[0].replace("<mask>", "[MASK]"), return_tensors="pt")
    with torch.no_grad():
        logits = model(**read).logits[read["input_ids"] == loaded.tokenizer.mask_token_id]
    best = logits.softmax(dim=-1).topk(3)
    assert [[token for token, _ in hole] for hole in found[0].holes] == [
        [loaded.tokenizer.decode([i]) for i in row] for row in best.indices.tolist()
    ]
    assert [[p for _, p in hole] for hole in found[0].holes] == [
        pytest.approx(r, abs=1e-5) for r in best.values.tolist()
    ]
    assert [len(each.holes) for each in found] == [2, 0, 0, 1]
    assert (found[1].text, found[2].text) == ("", "shares fell")
    first, second = (hole[0][0] for hole in found[0].holes)
    joined = f"the {first} rose after {second} news".replace(" ##", "")
    assert found[0].text == joined


def test_xlnet_fills_holes_that_no_token_sees(checkpoint, tmp_path):
    torch.manual_seed(0)
    tokenizer = load(checkpoint("masked", "ours"), "fill").tokenizer
    config = XLNetConfig(vocab_size=97, d_model=22, n_layer=2, n_head=2, d_inner=37, initializer_range=0.5)
    XLNetLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the [MASK] rose after <mask> news on monday", "shares fell", "[MASK] gained"]
    found = list(fill(tmp_path, texts, top_k=97))
    assert [len(each.holes) for each in found] == [2, 0, 1]
    assert commands_of(str(tmp_path)) == ("generate", "fill")
    with pytest.raises(UserError, match="XLNetLMHeadModel reads later tokens, so it gives no likelihood; use another"):
        load(tmp_path, "score")
    with pytest.raises(UserError, match="this xlnet model needs fp32 weights; remove the option"):
        load(tmp_path, "fill", bf16=True)
    model = XLNetLMHeadModel.from_pretrained(tmp_path).eval()
    for text, filled in zip(texts, found, strict=True):
        ids_L = tokenizer(text.replace("<mask>", "[MASK]"), return_tensors="pt")["input_ids"]
        holes = (ids_L[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        for hole, candidates in zip(holes, filled.holes, strict=True):
            hidden_BLL, asked_BTL = torch.zeros(1, ids_L.shape[1], ids_L.shape[1]), torch.zeros(1, 1, ids_L.shape[1])
            hidden_BLL[:, :, holes], asked_BTL[0, 0, hole] = 1, 1
            other_BL = ids_L.clone()
            other_BL[0, holes] = 7  # no token sees what stands there
            with torch.no_grad():
                logits = model(other_BL, perm_mask=hidden_BLL, target_mapping=asked_BTL).logits[0, 0]
            expected = logits[: len(tokenizer)].softmax(dim=-1).topk(5)
            assert [p for _, p in candidates[:5]] == pytest.approx(expected.values.tolist(), abs=1e-5)
            assert [token for token, _ in candidates[:5]] == [tokenizer.decode([i]) for i in expected.indices]


def test_only_the_mask_is_special_in_a_text_to_fill(checkpoint):
    loaded = load(checkpoint("masked", "ours"), "fill")
    texts = ["the [MASK] rose [SEP] on [PAD] monday", "the [MASK] rose"]
    found = list(fill(loaded, texts, top_k=2))
    assert [len(each.holes) for each in found] == [1, 1]
    assert found[0].text == texts[0].replace("[MASK]", found[0].holes[0][0][0]).replace(" ##", "")
    assert found[1].text == next(fill(loaded, texts[1:], top_k=2)).text


def test_only_ids_with_a_token_fill_a_hole(checkpoint):
    """A model may have more rows than its tokenizer has entries."""

    def widen(model):
        model.resize_token_embeddings(131)
        model.get_output_embeddings().bias.data[97:] = 99.0

    (found,) = fill(checkpoint("masked", "stock", widen), ["the [MASK] rose"], top_k=500)
    assert len(found.holes[0]) == 97
    assert sum(p for _, p in found.holes[0]) == pytest.approx(1, abs=1e-5)


def test_a_line_without_a_hole_gives_a_warning(checkpoint):
    said = []
    list(fill(checkpoint("masked", "ours"), ["", "shares fell"], warn=said.append))
    assert said == ["line 2: no hole to fill; mark one with [MASK]"]


@BOTH
def test_classify_gives_every_label_the_likeliest_first(whose, checkpoint):
    folder = checkpoint("classifier", whose)
    found = list(classify(folder, TEXTS))
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        load(folder, "classify").tokenizer,
    )
    for text, labels in zip(TEXTS, found, strict=True):
        if not text.strip():
            assert labels == {}
            continue
        with torch.no_grad():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        expected = {model.config.id2label[i]: p for i, p in enumerate(probabilities.tolist())}
        assert labels == pytest.approx(expected, abs=1e-5)
        assert list(labels.values()) == sorted(labels.values(), reverse=True)


def several(model):
    model.config.problem_type = "multi_label_classification"


def test_several_labels_each_have_a_probability_of_their_own(checkpoint):
    one, many = (next(classify(checkpoint("classifier", "ours", change), TEXTS)) for change in (None, several))
    assert sum(one.values()) == pytest.approx(1, abs=1e-5)
    assert sum(many.values()) != pytest.approx(1, abs=1e-2)


WRONG = {
    ("generate", "seq2seq"): "answers texts; use decero translate or decero summarize",
    ("translate", "causal"): "continues texts; use decero generate",
    ("fill", "classifier"): "classifies texts; use decero classify",
    ("classify", "masked"): "fills holes in texts; use decero fill",
}


@BOTH
@pytest.mark.parametrize(("command", "kind"), WRONG)
def test_a_model_of_another_kind_names_the_commands_that_fit(command, kind, whose, checkpoint):
    folder = checkpoint(kind, whose)
    with pytest.raises(UserError, match=WRONG[command, kind]) as error:
        load(folder, command)
    assert str(error.value).startswith(f"{folder}: this ")
    loaded = load(
        folder, {"seq2seq": "translate", "causal": "generate", "classifier": "classify", "masked": "fill"}[kind]
    )
    with pytest.raises(UserError, match=WRONG[command, kind]):
        load(loaded, command)


def diverged(model):
    model.base_model.get_input_embeddings().weight.data.fill_(torch.nan)


def overflowing(model):
    model.base_model.get_input_embeddings().weight.data.fill_(torch.inf)


@BOTH
@pytest.mark.parametrize("change", [diverged, overflowing])
@pytest.mark.parametrize("kind", COMMAND_OF)
def test_outputs_that_are_not_finite_are_no_answers(kind, change, whose, checkpoint):
    loaded = load(checkpoint(kind, whose, change), COMMAND_OF[kind])
    answer = {"classify": classify, "fill": fill, "generate": generate, "translate": translate}[COMMAND_OF[kind]]
    for options in ({}, {"beams": 2}) if kind in ("causal", "seq2seq") else ({},):
        with pytest.raises(UserError, match="computes NaN or infinity, which is no answer"):
            list(answer(loaded, ["", "the [MASK] rose"], **options))


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("kind", COMMAND_OF)
def test_no_command_answers_from_weights_that_are_not_there(kind, whose, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(kind, whose), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    parts = {name.rpartition(".")[0] for name in tensors}
    for part in sorted(part for part in parts if not re.search(r"\.1\b", part)):  # the second layer is like the first
        left = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"tensor {part}\.\w+ is missing"):
            load(folder, COMMAND_OF[kind])


def test_remote_code_needs_a_revision():
    with pytest.raises(UserError, match="--trust-remote-code needs --revision"):
        load("somebody/model", "fill", trust_remote_code=True)
