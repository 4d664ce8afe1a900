import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast, RobertaConfig, T5Config

from decero.data.tokenizer import (
    check_fits_model,
    check_round_trip,
    load_tokenizer,
    resolve_package_path,
    train_tokenizer,
)
from decero.data.words import splits_at_whitespace, word_starts, word_starts_by_id
from decero.errors import UserError

ALGORITHMS = ["wordpiece", "byte_level_bpe", "unigram"]
TEXTS = [
    "El niño comió piñas y pingüinos en el año 2024; ¿qué más quería, él? ¡Nada!",
    "The boy don't eat pineapples. He do not care: 3.14159 or 1,000,000 (see §4).",
    "Emoji 🙂🥺 and a family 👨‍👩‍👧 next to 中文字符 and 日本, 1º y 2ª, ½ kilo…",
    "Mañana será otro día.\n\nTomorrow is  another day;\ttabs, too.\u00a0Fin.",
    "Decomposed: man\u0303ana, cafe\u0301, H\u0331. Zero\u200bwidth, soft\xadhyphen.",
    "Markup <s>, <mask>, [MASK] and [UNK] ▁ Ġ ##.",
    "longword " + "xyz" * 90,
    "Ñandú ñandú ÑANDÚ niños niño niña niñas comió comieron comer comida " * 2,
]


def train(algorithm, texts=TEXTS, **kwargs):
    return train_tokenizer(
        texts, **{"algorithm": algorithm, "vocab_size": 400, "model_max_length": 37, "show_progress": False, **kwargs}
    )


@pytest.fixture(scope="module", params=ALGORITHMS)
def tokenizer(request):
    return train(request.param)


@pytest.fixture(scope="module")
def tokenizers_by_name():
    return {algorithm: train(algorithm) for algorithm in ALGORITHMS}


@pytest.fixture(scope="module")
def byte_level():
    return train("byte_level_bpe")


def is_roberta_style(tokenizer):
    return tokenizer.cls_token == "<s>"


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_corpus_round_trips(algorithm, lowercase):
    tokenizer = train(algorithm, lowercase=lowercase)
    check_round_trip(tokenizer, TEXTS)
    check_fits_model(tokenizer, 400, "model")
    spanish = tokenizer.decode(tokenizer("Ñandú, pingüino ¿año?", add_special_tokens=False)["input_ids"])
    assert "".join(spanish.split()) == ("ñandú,pingüino¿año?" if lowercase else "Ñandú,pingüino¿año?")


def test_only_the_declared_normalization_drops_characters(tokenizer):
    text = "niño 👨‍👩‍👧 1º ½ don't do not , . soft\xadhyphen"
    back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    wordpiece = isinstance(tokenizer.backend_tokenizer.decoder, decoders.WordPiece)
    assert (back.replace(" ", "") if wordpiece else back) == (text.replace(" ", "") if wordpiece else text)


def test_wordpiece_knows_any_word_of_known_characters():
    tokenizer = train("wordpiece")
    letters = sorted({c for c in "".join(TEXTS) if c.isalpha() and c.isascii()})
    assert tokenizer.unk_token_id not in tokenizer("".join(letters) + " " + "".join(reversed(letters)))["input_ids"]


@settings(max_examples=300, deadline=None, database=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_bpe_round_trips_any_unicode(byte_level, text):
    check_round_trip(byte_level, [text])
    ids = byte_level(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert byte_level.decode(ids) == text


def test_special_tokens(tokenizer):
    names = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    if is_roberta_style(tokenizer):
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        assert [getattr(tokenizer, name) for name in names] == [1, 3, 0, 2, 4]
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    else:
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, 4]
    assert set(tokenizer.all_special_ids) == set(range(5))
    assert len(tokenizer.backend_tokenizer.get_added_tokens_decoder()) == 5  # the ##characters are ordinary tokens
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1 < 400


def test_pairs(tokenizer):
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("el niño", "the boy eats"))
    pair = tokenizer("el niño", "the boy eats")
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if is_roberta_style(tokenizer):
        assert pair["input_ids"] == [start, *first, end, end, *second, end]
        assert "token_type_ids" not in pair
        assert {*pair.encodings[0].type_ids} == {0}
    else:
        assert pair["input_ids"] == [start, *first, end, *second, end]
        assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_the_mask_takes_the_space_before_it_as_robertas_does(tokenizer):
    masked = tokenizer(f"el {tokenizer.mask_token} niño", add_special_tokens=False)
    mask = masked["input_ids"].index(tokenizer.mask_token_id)
    assert masked.encodings[0].tokens[mask] == (" <mask>" if is_roberta_style(tokenizer) else "[MASK]")


@pytest.mark.parametrize("model_config", [None, BertConfig, RobertaConfig, T5Config])
def test_the_saved_folder_loads_with_plain_transformers(tokenizer, tmp_path, model_config):
    tokenizer.save_pretrained(tmp_path)
    if model_config is not None:  # a config names another tokenizer class, which must not win
        model_config().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    samples = [*TEXTS, f"un {tokenizer.mask_token} más"]
    assert loaded(samples, samples[::-1]).data == tokenizer(samples, samples[::-1]).data
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded._special_tokens_map["mask_token"].lstrip == is_roberta_style(tokenizer)
    for setting in ("model_max_length", "padding_side", "clean_up_tokenization_spaces", "model_input_names"):
        assert getattr(loaded, setting) == getattr(tokenizer, setting), setting
    assert (loaded.model_max_length, loaded.padding_side, loaded.clean_up_tokenization_spaces) == (37, "right", False)
    assert load_tokenizer(str(tmp_path), needs=("mask_token", "pad_token")).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_twice_gives_the_same_file(algorithm):
    files = {train(algorithm, vocab_size=330).backend_tokenizer.to_str() for _ in range(6)}
    assert len(files) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_texts_may_come_in_batches_or_from_a_generator(algorithm):
    expected = train(algorithm).get_vocab()
    assert train(algorithm, [TEXTS[:3], TEXTS[3:]]).get_vocab() == expected
    assert train(algorithm, (text for text in TEXTS), length=len(TEXTS)).get_vocab() == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_vocabulary_too_small_for_the_characters_is_refused(algorithm):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 60 cannot hold .* raise it"):
        train(algorithm, vocab_size=60)


def test_training_refusals():
    with pytest.raises(UserError, match=r"tokenizer\.algorithm: unknown algorithm wordpeice; did you mean wordpiece\?"):
        train("wordpeice")
    for algorithm in ("wordpiece", "unigram"):
        with pytest.raises(UserError, match="no text"):
            train(algorithm, [])


def test_round_trip_refusals():
    wordpiece, unigram = train("wordpiece"), train("unigram")
    for tokenizer in (wordpiece, unigram):
        with pytest.raises(
            UserError, match=r"document 2 does not round-trip: 'Жук.*unknown.*raise tokenizer\.vocab_size"
        ):
            check_round_trip(tokenizer, ["niño", "niña Жук"])
        check_round_trip(tokenizer, ["niño", "niña Жук"], limit=1)
        check_round_trip(tokenizer, ["[UNK] niño [MASK]"])  # literal text, not the unknown token
    lossy = train("byte_level_bpe")
    lossy.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match=r"document 1 .*'el niño' came back as 'elniño'") as refusal:
        check_round_trip(lossy, ["el niño"])
    assert "\n" not in str(refusal.value)


def test_ids_beyond_the_model_are_refused_by_the_largest_id(byte_level):
    check_fits_model(byte_level, len(byte_level), "configs/x.yaml")
    largest = len(byte_level) - 1
    with pytest.raises(
        UserError, match=rf"^configs/x.yaml: .* largest id is {largest} but .* vocab_size is {largest};"
    ):
        check_fits_model(byte_level, largest, "configs/x.yaml")
    gap = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 70}, unk_token="a")), unk_token="a"
    )
    assert len(gap) == 2
    with pytest.raises(UserError, match=r"largest id is 70 .*model\.overrides\.vocab_size=71"):
        check_fits_model(gap, 70, "model")


def test_the_folder_of_a_run_names_its_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(UserError, match=r"this is the folder of a run; give .*/run/model$"):
        load_tokenizer(str(tmp_path / "run"))
    assert load_tokenizer(str(tmp_path / "run" / "model")).vocab_size == tokenizer.vocab_size


def test_load_refusals(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot read a tokenizer in this folder") as refusal:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(refusal.value)
    BertConfig().save_pretrained(tmp_path)  # AutoTokenizer would make a tokenizer of five special tokens here
    with pytest.raises(UserError, match="no vocabulary"):
        load_tokenizer(str(tmp_path))
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no vocabulary"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "<u>": 2}, unk_token="<u>")), unk_token="<u>"
    )
    bare.save_pretrained(tmp_path / "bare")
    assert load_tokenizer(str(tmp_path / "bare")).get_vocab() == bare.get_vocab()
    with pytest.raises(UserError, match="has no mask_token, no pad_token;"):
        load_tokenizer(str(tmp_path / "bare"), needs=("unk_token", "mask_token", "pad_token"))
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(UserError, match="slow tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))


def test_a_damaged_setting_is_refused_at_loading(tmp_path):
    train("wordpiece").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": {"a": [1]}}))
    with pytest.raises(UserError, match=r"model_max_length is .*, not a number"):
        load_tokenizer(str(tmp_path))


def test_remote_code_is_never_run_unasked(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}))
    with pytest.raises(UserError, match="cannot read a tokenizer in this folder"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_package_paths(tmp_path, monkeypatch):
    folder = tmp_path / "decero_fake_package" / "model"
    train("unigram").save_pretrained(folder)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Path(resolve_package_path("package:decero_fake_package/model")) == folder
    assert load_tokenizer("package:decero_fake_package/model").mask_token == "[MASK]"
    assert "decero_fake_package" not in sys.modules
    assert resolve_package_path("google-bert/bert-base-cased") == "google-bert/bert-base-cased"
    with pytest.raises(UserError, match=r"decero_no_such is not installed; pip install decero-no-such"):
        resolve_package_path("package:decero_no_such/model")
    with pytest.raises(UserError, match="has no folder modle"):
        resolve_package_path("package:decero_fake_package/modle")
    with pytest.raises(UserError, match="package __main__ is not installed"):
        resolve_package_path("package:__main__/model")


def spelled(vocab_of, **parts):
    """A Unigram tokenizer with a given vocabulary, in which a longer piece always wins."""
    backend = Tokenizer(models.Unigram([("<unk>", -99.0), *((piece, -1.0) for piece in vocab_of)], unk_id=0))
    for part, value in parts.items():
        setattr(backend, part, value)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


def wordpiece_family():
    vocab = ["[UNK]", "un", "##believ", "##able", ",", "el", "ni", "##ño", "中", "文"]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]")


def byte_level_family():
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="a")


METASPACE = ["▁un", "believ", "able", "▁", ",", "▁el", "▁ni", "ño", "▁😀"]
FAMILIES = {
    # tokens:  un ##believ ##able , el ni ##ño 中 文
    "wordpiece": (wordpiece_family, "unbelievable, el  niño中文", "100111011"),
    # one token a byte: e l Ġ ñ(2) o , Ġ 😀(4)
    "byte_level": (byte_level_family, "el ño, 😀", "10" + "1000" + "1" + "10000"),
    # ▁un believ able , ▁el ▁ believ ▁ni ño : a lone ▁ keeps its piece
    "metaspace": (
        lambda: spelled(METASPACE, pre_tokenizer=pre_tokenizers.Metaspace()),
        "unbelievable, el believ niño",
        "1000" + "1" + "10" + "10",
    ),
    "no_pre_tokenizer": (
        lambda: spelled(
            METASPACE, normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        ),
        "unbelievable, el believ  niño",  # both spaces belong to the word after them
        "1000" + "1" + "10" + "100",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_word_starts_on_known_sentences(family):
    build, text, expected = FAMILIES[family]
    tokenizer = build()
    (starts,) = word_starts(tokenizer([text]).encodings, [text])
    assert starts.dtype == bool
    assert "".join(map(str, starts.astype(int))) == expected, tokenizer.tokenize(text)


def test_without_a_pre_tokenizer_word_ids_are_not_enough():
    build, text, _ = FAMILIES["no_pre_tokenizer"]
    assert set(build()([text]).word_ids(0)) == {0}


def test_word_starts_of_several_texts_are_those_of_each(tokenizer):
    texts = ["", *TEXTS, "fin"]
    together = word_starts(tokenizer(texts, padding=True).encodings, texts)
    for text, starts in zip(texts, together, strict=True):
        (alone,) = word_starts(tokenizer([text]).encodings, [text])
        np.testing.assert_array_equal(starts[: len(alone)], alone)
        assert starts[len(alone) :].all()  # padding


WHITESPACE = {
    "wordpiece": True,
    "byte_level": True,
    "metaspace": False,
    "no_pre_tokenizer": False,
}  # Metaspace: U+0020 alone


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_at_whitespace_per_tokenizer_family(family):
    assert splits_at_whitespace(FAMILIES[family][0]()) is WHITESPACE[family]


@given(st.lists(st.text("ab1!é中' \n\t\xa0\u3000", max_size=30), min_size=1, max_size=4))
@settings(deadline=None)
def test_pre_tokens_are_enough_if_they_split_at_whitespace(tokenizers_by_name, texts):
    for tokenizer in tokenizers_by_name.values():
        assert splits_at_whitespace(tokenizer)
        encoded = tokenizer(texts).encodings
        for quick, careful in zip(word_starts(encoded, texts, True), word_starts(encoded, texts), strict=True):
            np.testing.assert_array_equal(quick, careful)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_ids_of_wordpiece_say_where_words_begin(family):
    assert (word_starts_by_id(FAMILIES[family][0]()) is not None) is (family == "wordpiece")


def test_ids_say_nothing_where_words_may_begin_with_the_prefix():
    tokenizer = wordpiece_family()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert splits_at_whitespace(tokenizer)
    assert tokenizer.tokenize("##able") == ["##able"], "one word, and its id says that it continues another"
    assert word_starts_by_id(tokenizer) is None


@given(st.lists(st.text("ab1!é中'# \n\t\xa0\u3000", max_size=30), min_size=1, max_size=4))
@settings(deadline=None)
def test_ids_of_wordpiece_say_what_pre_tokens_say(tokenizers_by_name, texts):
    starts = word_starts_by_id(tokenizers_by_name["wordpiece"])
    backend = tokenizers_by_name["wordpiece"].backend_tokenizer
    encoded = backend.encode_batch(texts, add_special_tokens=False)
    quick = backend.encode_batch_fast(texts, add_special_tokens=False)
    for one, other, careful in zip(encoded, quick, word_starts(encoded, texts), strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(starts[np.array(other.ids, dtype=int)], careful)


@pytest.mark.parametrize("algorithm", ["wordpiece", "byte_level_bpe", "unigram"])
def test_sentinels_bring_the_special_tokens_of_t5(texts, algorithm, tmp_path):
    made = train_tokenizer(
        [*texts, "a page of <extra tidy_1>"] * 2, algorithm=algorithm, vocab_size=311, model_max_length=64,
        num_sentinels=3, show_progress=False,
    )  # fmt: skip
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), needs=("eos_token", "pad_token", "unk_token"))
    assert [loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id] == [0, 1, 2]
    assert loaded.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]) == [3, 4, 5]
    ids = loaded(texts[0])["input_ids"]
    assert ids[-1] == loaded.eos_token_id
    assert loaded.decode(ids, skip_special_tokens=True) == texts[0]
    assert 4 not in loaded("a page of <extra_id_1>", split_special_tokens=True)["input_ids"]
    assert made("one", "two")["input_ids"].count(1) == 2
