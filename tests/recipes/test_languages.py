"""Multilingual checkpoints: the languages of sources and targets, in training, saving and translating."""

import json

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.m2m_100 import modeling_m2m_100 as m2m_100

from decero.data.languages import end_token, find_direction, language_ids
from decero.data.pairs import PairCollator
from decero.errors import UserError
from decero.inference import load, translate

pytestmark = pytest.mark.long

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz"
SIDES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIDES |= {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "init_std": 0.3}
UNIGRAM = [*((token, 0.0) for token in SPECIAL), *((letter, -3.0) for letter in LETTERS)]
NAMES = "--source-lang", "--target-lang"


def nllb():
    vocab = {token: place for place, token in enumerate([*SPECIAL, *LETTERS])}
    return NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=["eng_Latn", "fra_Latn", "spa_Latn"])


def marian():
    """Make a tokenizer with `>>fra<<` and `>>spa<<`; that of Marian itself needs sentencepiece."""
    tokens = ["</s>", "<unk>", "<pad>", ">>fra<<", ">>spa<<", *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(token, -3.0) for token in tokens], unk_id=1))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.add_tokens(tokens[3:5])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 0)])
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


TOKENIZERS = {
    "nllb": nllb,
    "mbart": lambda: MBartTokenizer(vocab=list(UNIGRAM)),
    "mbart50": lambda: MBart50Tokenizer(vocab=list(UNIGRAM)),
    "marian": marian,
}
CODES = {
    "nllb": ("eng_Latn", "fra_Latn"), "mbart": ("en_XX", "fr_XX"), "mbart50": ("en_XX", "fr_XX"),
    "marian": (None, "fra"),
}  # fmt: skip
OTHER = {"nllb": "spa_Latn", "mbart": "de_DE", "mbart50": "de_DE", "marian": "spa"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Save a tokenizer and a model as they are published: without a pair of languages."""
    made = {}

    def save(name):
        if name not in made:
            made[name], tokenizer = str(tmp_path_factory.mktemp("published") / name), TOKENIZERS[name]()
            ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "dropout": 0.0}
            ids |= {} if name == "mbart" else {"decoder_start_token_id": 2}
            torch.manual_seed(3)
            if name in ("nllb", "marian"):
                config = M2M100Config(vocab_size=len(tokenizer), **ids, **SIDES)
                model = M2M100ForConditionalGeneration(config)
            else:
                model = MBartForConditionalGeneration(MBartConfig(vocab_size=len(tokenizer), **ids, **SIDES))
            model.generation_config.forced_eos_token_id = model.config.forced_eos_token_id = None
            model.save_pretrained(made[name])
            tokenizer(text_target="a")  # writes the source language into tgt_lang
            tokenizer.save_pretrained(made[name])
        return made[name]

    return save


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Write a configuration; its pairs are words and the same words backwards."""
    folder = tmp_path_factory.mktemp("pairs")
    words = ["soup", "bread", "warm", "cold", "river", "house", "green", "stone", "music", "paper"]
    rows = [{"source": f"{a} {b}", "target": f"{b[::-1]} {a[::-1]}"} for a in words for b in words[:3]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = """\
output: OUTPUT
model: {name_or_path: MODEL}
data: {tasks: {swap: {files: {train: PAIRS, validation: PAIRS, test: PAIRS}}}, max_source_length: 20,
  max_target_length: 20}
generation: {metric: text, max_new_tokens: 12, validation_rows: 3}
optim: {learning_rate: 1e-2}
training: {max_train_steps: 3, global_batch_size: 8, per_device_batch_size: 8, save_steps: null, eval_strategy: "no"}
tracking: {trackers: []}
"""
    (folder / "swap.yaml").write_text(text.replace("PAIRS", str(folder / "pairs.jsonl")))
    return folder / "swap.yaml"


def languages(source, target):
    codes = {"source_lang": source, "target_lang": target}
    return [f"data.tasks.swap.{name}={code}" for name, code in codes.items() if code]


def stock_pair(name, tokenizer, source, target):
    """Return how transformers' documentation reads a source and starts an answer."""
    if name == "marian":
        return f">>{target}<< ", {}
    tokenizer.src_lang = source
    start = "decoder_start_token_id" if name == "mbart" else "forced_bos_token_id"
    return "", {start: tokenizer.convert_tokens_to_ids(target)}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_translate_is_that_of_transformers(name, published):
    loaded, said = load(published(name), "translate"), []
    stock = AutoModelForSeq2SeqLM.from_pretrained(published(name)).eval()
    texts, found = ["warm soup", "the green river was cold", "", "stone"], {}
    for target in (CODES[name][1], OTHER[name], CODES[name][1]):
        tokenizer = AutoTokenizer.from_pretrained(published(name))
        prefix, start = stock_pair(name, tokenizer, CODES[name][0], target)
        expected = []
        for text in texts:
            read = tokenizer(prefix + text, return_tensors="pt", return_token_type_ids=False)
            ids = stock.generate(**read, **start, max_new_tokens=9, do_sample=False)[0]
            expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip() if text else "")
        codes = {"source_lang": CODES[name][0], "target_lang": target}
        found[target] = list(translate(loaded, texts, **codes, max_new_tokens=9, warn=said.append))
        assert found[target] == expected
    assert len(set(map(tuple, found.values()))) == 2, "the target language made no difference"


@pytest.mark.parametrize(  # mbart50 differs from mbart by its tokenizer, which the next test reads
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "mbart50" else []) for name in TOKENIZERS]
)
def test_training_knows_its_languages_and_the_checkpoint_too(name, launch, recipe, published, tmp_path):
    words = [f"model.name_or_path={published(name)}", f"output={tmp_path}/run", *languages(*CODES[name])]
    launch("finetune_seq2seq", recipe, *words, "generation.num_beams=2")
    folder = tmp_path / "run" / "model"
    outputs = pd.read_parquet(tmp_path / "run" / "outputs.parquet")
    sources, hypotheses = list(outputs["source"][:7]), list(outputs["hypothesis"][:7])
    assert list(translate(str(folder), sources)) == hypotheses  # no option needed
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    prefix = model.config.task_specific_params["swap"]["prefix"]
    assert prefix == (">>fra<< " if name == "marian" else "")
    for source, hypothesis in zip(sources, hypotheses, strict=True):
        read = tokenizer(prefix + source, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**read, do_sample=False)[0]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == hypothesis
    if name == "marian":
        return
    own, target = model.generation_config, tokenizer.convert_tokens_to_ids(CODES[name][1])
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == CODES[name]
    assert (own.decoder_start_token_id if name == "mbart" else own.forced_bos_token_id) == target
    assert own.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["nllb", "mbart", "mbart50"])
def test_the_decoder_reads_what_transformers_gives_it(name, published):
    tokenizer = AutoTokenizer.from_pretrained(published(name))
    stock = AutoModelForSeq2SeqLM.from_pretrained(published(name))
    direction = find_direction(tokenizer, *CODES[name], NAMES, name)
    rows = [
        {"input_ids": tokenizer(text)["input_ids"], "labels": tokenizer(text_target=text)["input_ids"]}
        for text in ("warm soup", "river")
    ]
    start = None if "decoder_start_token_id" in direction.start else stock.config.decoder_start_token_id
    batch = PairCollator(tokenizer, start)(rows)
    labels = tokenizer(text_target=["warm soup", "river"], padding=True, return_tensors="pt")["input_ids"]
    if name == "nllb":
        expected = m2m_100.shift_tokens_right(labels, tokenizer.pad_token_id, stock.config.decoder_start_token_id)
    else:
        expected = stock.prepare_decoder_input_ids_from_labels(labels)
    mask = batch["labels"] != -100  # padding is not scored
    assert (batch["decoder_input_ids"][mask] == expected[mask]).all()
    assert (batch["labels"][mask] == labels[mask]).all()
    assert end_token(tokenizer) == tokenizer.eos_token_id
    assert CODES[name][1] in tokenizer.convert_ids_to_tokens(rows[0]["labels"])
    assert CODES[name][0] in tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])


def test_tasks_may_have_targets_of_their_own(launch, recipe, published, tmp_path):
    pairs = recipe.parent / "pairs.jsonl"
    files = f"{{train: {pairs}, validation: {pairs}, test: {pairs}}}"
    one, two = (f"files: {files}, source_lang: eng_Latn, target_lang: {code}" for code in ("fra_Latn", "spa_Latn"))
    words = [f"model.name_or_path={published('nllb')}", f"data.tasks={{fr: {{{one}}}, es: {{{two}}}}}"]
    launch("finetune_seq2seq", recipe, *words, f"output={tmp_path}/run", "training.max_train_steps=20")
    folder, outputs = str(tmp_path / "run" / "model"), pd.read_parquet(tmp_path / "run" / "outputs.parquet")
    codes = {"fr": "fra_Latn", "es": "spa_Latn"}
    for task, code in codes.items():
        rows = outputs[outputs["task"] == task][:5]
        found = translate(folder, list(rows["source"]), source_lang="eng_Latn", target_lang=code)
        assert list(found) == list(rows["hypothesis"])
    with pytest.raises(UserError, match="set --source-lang and --target-lang"):
        translate(folder, ["soup"])


@pytest.mark.parametrize(
    ("name", "source", "target", "line"),
    [
        ("nllb", None, None, "reads and writes 3 languages (eng_Latn, fra_Latn, spa_Latn, ...); set {s} and {t}"),
        ("nllb", "eng_Latn", None, "; set {t}"),
        ("nllb", None, "fra_Latn", "; set {s}"),
        ("nllb", "en", "fra_Latn", "{s}: {m} has no language en; did you mean eng_Latn?"),
        ("nllb", "eng_Latn", "fr_XX", "{t}: {m} has no language fr_XX; did you mean fra_Latn?"),
        ("mbart", "english", "fr_XX", "{s}: {m} has no language english; did you mean en_XX?"),
        ("mbart50", None, "fr_XX", "; set {s}"),
        ("marian", None, None, "writes 2 languages (fra, spa, ...); set {t}"),
        ("marian", None, "fr", "{t}: {m} has no language fr; did you mean fra?"),
        ("marian", "eng", "fra", "{s}: {m} is told only the language to write; remove {s} eng"),
    ],
)
def test_wrong_languages_are_one_line(name, source, target, line, launch, recipe, published, tmp_path):
    folder = published(name)
    with pytest.raises(UserError) as error:
        list(translate(folder, ["warm soup"], source_lang=source, target_lang=target))
    assert line.format(s=NAMES[0], t=NAMES[1], m=folder) in str(error.value)
    words = [f"model.name_or_path={folder}", f"output={tmp_path}/run", *languages(source, target)]
    said = launch("finetune_seq2seq", recipe, *words, expect=2).stderr
    settings = {"s": "data.tasks.swap.source_lang", "t": "data.tasks.swap.target_lang", "m": f"tokenizer {folder}"}
    assert line.format(**settings) in said


def test_a_model_of_one_language_refuses_languages(launch, recipe, sentinels, shape, tmp_path):
    words = [f"model={{config: {shape}}}", f"tokenizer.name_or_path={sentinels}", f"output={tmp_path}/run"]
    said = launch("finetune_seq2seq", recipe, *words, *languages("en", "fr"), expect=2).stderr
    assert f"data.tasks.swap.source_lang: tokenizer {sentinels} has no languages to choose from; remove" in said
    launch("finetune_seq2seq", recipe, *words, "training.max_train_steps=1")
    with pytest.raises(UserError, match=r"--target-lang: .* has no languages to choose from; remove --target-lang fr"):
        translate(str(tmp_path / "run" / "model"), ["soup"], target_lang="fr")


def test_sources_of_marian_may_name_their_language(launch, recipe, published, tmp_path):
    loaded, texts = load(published("marian"), "translate"), ["warm soup", "stone"]
    for code in ("fra", "spa"):
        tagged = [f">>{code}<< {text}" for text in texts]
        assert list(translate(loaded, tagged)) == list(translate(loaded, texts, target_lang=code))
    with pytest.raises(UserError, match=r"line 2: .* writes 2 languages"):
        list(translate(loaded, [">>fra<< soup", "stone"]))
    words = [f"model.name_or_path={published('marian')}", f"output={tmp_path}/run"]
    launch("finetune_seq2seq", recipe, *words, "data.tasks.swap.prefix='>>spa<< '", "training.max_train_steps=1")


def test_languages_without_a_token_are_not_offered():
    tokenizer = nllb()
    assert list(language_ids(tokenizer)) == ["eng_Latn", "fra_Latn", "spa_Latn"]
    assert language_ids(marian()) == {}
    tokenizer.legacy_behaviour = True
    with pytest.raises(UserError, match="legacy_behaviour"):
        find_direction(tokenizer, "eng_Latn", "fra_Latn", NAMES, "m")


def test_the_tokenizer_of_bleu_is_said_before_training(launch, recipe, sentinels, shape, tmp_path):
    rows = [{"source": f"soup {number}", "target": "我喜欢喝热汤" + "一二三四五"[number % 5]} for number in range(9)]
    path = tmp_path / "zh.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model={{config: {shape}}}", f"tokenizer.name_or_path={sentinels}", "generation.metric=translation"]
    words += [f"data.tasks.swap.files={{train: {path}, test: {path}}}", f"output={tmp_path}/run"]
    said = "data.tasks.swap: its targets are in a script without spaces, so BLEU uses the tokenizer zh"
    assert said in launch("finetune_seq2seq", recipe, *words, "training.max_train_steps=1").stdout
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "|tok:zh|" in record["signatures"]["bleu"]
