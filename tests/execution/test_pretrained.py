"""Loading checkpoints: what is missing, unused or of another shape is said, and nothing is drawn at random unsaid."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    T5EncoderModel,
)

from decero.errors import UserError
from decero.execution.model_folder import open_checkpoint
from decero.execution.pretrained import load_pretrained, say
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig

SIZES = {"vocab_size": 37, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 41}
CONFIGS = {
    "bert": lambda: BertConfig(**SIZES),
    "ours": lambda: DeceroEncoderConfig(**SIZES),
    "decoder": lambda: DeceroDecoderConfig(**SIZES, pad_token_id=0),
    "gpt2": lambda: GPT2Config(vocab_size=37, n_embd=36, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2),
    "llama": lambda: LlamaConfig(**SIZES, pad_token_id=0),
    "t5": lambda: T5Config(
        vocab_size=37, d_model=36, d_kv=12, d_ff=41, num_layers=2, num_heads=3, decoder_start_token_id=0
    ),
}
BASE, MASKED, CLASSIFIER = AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
CAUSAL, SEQ2SEQ = AutoModelForCausalLM, AutoModelForSeq2SeqLM


@pytest.fixture(autouse=True)
def _say_again():
    say.cache_clear()


@pytest.fixture
def saved(tmp_path):
    """Save a tiny model; change(tensors) may edit its tensors, and fields its config.json. Returns the checkpoint."""

    def save(family, auto, change=None, **fields):
        folder = tmp_path / "model"
        auto.from_config(CONFIGS[family]()).save_pretrained(folder)
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        return open_checkpoint(str(folder))

    return save


def load(auto, checkpoint, new_head=True, **options):
    return load_pretrained(auto, checkpoint, new_head=new_head, dtype=torch.float32, **options)


NOTES = [
    ("bert", MASKED, MASKED, ""),
    ("bert", BASE, MASKED, "new, with random weights: cls; not used: pooler.dense (2 tensors)"),
    ("bert", BASE, CLASSIFIER, "new, with random weights: classifier"),
    ("bert", MASKED, CLASSIFIER, "bert.pooler, classifier; not used: cls.predictions (5 tensors)"),
    ("ours", MASKED, MASKED, ""),
    ("ours", MASKED, CLASSIFIER, "new, with random weights: classifier, model.pooler; not used: lm_head"),
    ("ours", CLASSIFIER, MASKED, "new, with random weights: lm_head; not used: classifier"),
    ("decoder", CAUSAL, CAUSAL, ""),
    ("decoder", BASE, CAUSAL, ""),  # its head is its embedding
    ("gpt2", CAUSAL, CLASSIFIER, "new, with random weights: score"),
    ("llama", BASE, CAUSAL, "new, with random weights: lm_head"),
    ("t5", BASE, SEQ2SEQ, ""),
    ("t5", SEQ2SEQ, SEQ2SEQ, ""),
    ("t5", SEQ2SEQ, CLASSIFIER, "new, with random weights: classification_head"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "stored", "wanted", "note"), NOTES)
def test_a_new_head_and_unused_tensors_are_said_once(family, stored, wanted, note, saved, capsys):
    checkpoint = saved(family, stored)
    for _ in range(2):
        load(wanted, checkpoint)
    said = capsys.readouterr().err
    assert said.count("note: ") == bool(note)
    assert note in said


@pytest.mark.parametrize(("family", "stored", "wanted", "note"), [row for row in NOTES if "new, " in row[3]])
def test_no_head_is_drawn_where_none_may_be_new(family, stored, wanted, note, saved):
    with pytest.raises(UserError, match=r": tensor \S+ is missing"):
        load(wanted, saved(family, stored), new_head=False)


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "net.encoder."])
@pytest.mark.parametrize(
    ("family", "auto"), [("bert", BASE), ("ours", MASKED), ("decoder", CAUSAL), ("gpt2", CAUSAL), ("t5", SEQ2SEQ)]
)
def test_another_prefix_is_refused_or_taken_off(family, auto, prefix, saved):
    wanted, checkpoint = CLASSIFIER if auto is BASE else auto, saved(family, auto, prefixed(prefix))
    if prefix == "model." and family in ("ours", "decoder"):  # transformers takes off the prefix of a class itself
        loaded, stored = load(wanted, checkpoint).state_dict(), load_file(checkpoint.folder / "model.safetensors")
        assert all(torch.equal(loaded[name.removeprefix(prefix)], tensor) for name, tensor in stored.items())
        return
    with pytest.raises(UserError, match=rf"is missing \(and \d+ more\); .* the file has {prefix}.*without this prefix"):
        load(wanted, checkpoint)


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("family", "stored", "wanted", "part"),
    [
        ("bert", MASKED, CLASSIFIER, "encoder.layer.1."),
        ("bert", CLASSIFIER, CLASSIFIER, "classifier."),  # the class of the file has a head
        ("bert", CLASSIFIER, CLASSIFIER, "classifier.bias"),
        ("bert", CLASSIFIER, CLASSIFIER, "pooler."),
        ("bert", MASKED, MASKED, "transform."),
        ("ours", MASKED, MASKED, "lm_head"),
        ("ours", MASKED, CLASSIFIER, "layers.1."),
        ("decoder", CAUSAL, CLASSIFIER, "layers.0."),
        ("gpt2", CAUSAL, CAUSAL, "h.1."),
        ("llama", CAUSAL, CAUSAL, "lm_head"),
        ("t5", SEQ2SEQ, SEQ2SEQ, "decoder."),
    ],
)
def test_a_lacking_layer_or_head_is_an_error(family, stored, wanted, part, saved):
    with pytest.raises(UserError, match=rf"tensor \S*{part}\S* is missing.*; \w+ needs it$"):
        load(wanted, saved(family, stored, without(part)))


def test_half_a_head_is_not_a_new_head(saved):
    checkpoint = saved("bert", CLASSIFIER, without("classifier.bias"), architectures=["BertForTokenClassification"])
    with pytest.raises(UserError, match=r"tensor classifier\.bias is missing; BertForSequenceClassification needs it"):
        load(CLASSIFIER, checkpoint)


def test_an_encoder_alone_is_no_encoder_decoder(tmp_path):
    T5EncoderModel(CONFIGS["t5"]()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tensor decoder\.block\.0\S+ is missing"):
        load(SEQ2SEQ, open_checkpoint(str(tmp_path)))


def test_layers_that_the_config_lacks_are_said(saved, capsys):
    load(MASKED, saved("bert", MASKED, num_hidden_layers=1))
    assert "not used: bert.encoder.layer.1 (16 tensors)\n" in capsys.readouterr().err


def test_another_shape_is_an_error_outside_a_new_head(saved):
    checkpoint = saved("bert", CLASSIFIER)
    with pytest.raises(UserError, match=r"tensor classifier\.bias has shape \[2\], but \w+ needs \[5\]"):
        load(CLASSIFIER, checkpoint, num_labels=5)
    assert load(CLASSIFIER, checkpoint, num_labels=5, new_labels=True).classifier.out_features == 5
    with pytest.raises(UserError, match=r"tensor bert\.embeddings\.word_embeddings\.weight has shape \[37, 36\]"):
        load(CLASSIFIER, checkpoint, num_labels=5, new_labels=True, vocab_size=41)


def test_only_the_main_process_says_it(saved, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "1")
    load(CLASSIFIER, saved("bert", BASE))
    assert "note: " not in capsys.readouterr().err
