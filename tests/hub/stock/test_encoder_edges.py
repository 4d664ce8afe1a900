"""Conversions where a model or a folder is unlike most: padding, positions, dropout, biases, end tokens."""

import json

import pytest
import torch
import transformers as hf
from torch.testing import assert_close

import decero.models as ours
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.hub.convert import export_model, import_model
from decero.hub.stock import from_stock, to_stock
from decero.hub.verification import random_batch

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
POST = {"norm_placement": "post", "position_embedding_type": "learned", "embedding_norm": True, "final_norm": False}
POST |= {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 43}


def encoder(**fields):
    torch.manual_seed(1)
    return ours.DeceroEncoderForMaskedLM(ours.DeceroEncoderConfig(**SIZES, **POST | fields)).eval()


@torch.no_grad()
@pytest.mark.parametrize("back", [False, True])
def test_roberta_counts_no_padding_on_either_side(back):
    torch.manual_seed(0)
    config = hf.RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=43, initializer_range=0.3)
    stock = hf.RobertaForMaskedLM(config).eval()
    model = from_stock(stock).eval()
    stock = to_stock(model, "roberta").eval() if back else stock
    text = torch.randint(2, 61, (1, 9))
    padding = torch.ones(1, 4, dtype=torch.long)
    alone = model(text, attention_mask=torch.ones_like(text)).logits
    for rows, place in ((torch.cat([padding, text], 1), slice(4, None)), (torch.cat([text, padding], 1), slice(9))):
        batch = {"input_ids": rows, "attention_mask": (rows != 1).long()}
        found = model(**batch).logits[:, place]
        assert_close(found, alone, atol=1e-5, rtol=1e-5)
        assert_close(found, stock(**batch).logits[:, place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dropout", "stored"), [(None, 0.2), (0.3, 0.3)])
def test_distilbert_has_a_dropout_where_ours_has_none(dropout, stored, tmp_path):
    fields = {"type_vocab_size": 0, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.2, "classifier_dropout": dropout}
    encoder(**fields).save_pretrained(tmp_path / "ours")
    folder = export_model(tmp_path / "ours", tmp_path / "stock")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["seq_classif_dropout"]) == ("distilbert", stored)


@pytest.mark.long
def test_a_model_without_padding_id_is_no_roberta(tmp_path):
    model = encoder(pad_token_id=None, type_vocab_size=1, layer_norm_eps=1e-5)
    with pytest.raises(UserError, match="pad_token_id=None has no counterpart in roberta"):
        to_stock(model, "roberta")
    encoder(pad_token_id=None, type_vocab_size=0).save_pretrained(tmp_path / "ours")
    said = []
    export_model(tmp_path / "ours", tmp_path / "out", say=said.append)
    assert any("roberta" in line for line in said)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_the_bias_that_an_untied_head_reads_is_kept(kind):
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**SIZES, max_position_embeddings=43, tie_word_embeddings=False)
    stock = getattr(hf, f"{kind}ForMaskedLM")(config).eval()
    for name, tensor in stock.named_parameters():
        if name.endswith("bias"):
            tensor.normal_()
    ids = torch.randint(2, 61, (2, 9))
    assert_close(from_stock(stock).eval()(ids).logits, stock(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_a_recurrent_model_is_told_that_no_family_fits(tmp_path):
    fields = {"mixer_type": "lstm", "position_embedding_type": "none"}
    ours.DeceroDecoderForCausalLM(ours.DeceroDecoderConfig(**SIZES, **fields)).save_pretrained(tmp_path / "ours")
    said = []
    export_model(tmp_path / "ours", tmp_path / "out", say=said.append)
    (line,) = [line for line in said if line.startswith("no stock family can hold it")]
    assert len(line) > len("no stock family can hold it: ")


def test_a_check_of_pictures_has_the_size_of_the_model():
    config = hf.ViTConfig(image_size=32, patch_size=8, num_labels=3, **{n: SIZES[n] for n in list(SIZES)[1:]})
    model = hf.ViTForImageClassification(config)
    batch = random_batch(model)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert model(**batch).logits.shape == (2, 3)


def test_a_text_that_ends_with_padding_is_no_stock_input(tmp_path):
    """The classes of GPT-2 and Llama find the end of a text by the padding token."""
    tokenizer = train_tokenizer(
        ["banks gained", "shares fell"],
        algorithm="wordpiece",
        vocab_size=61,
        model_max_length=43,
        min_frequency=1,
        show_progress=False,
    )
    config = ours.DeceroDecoderConfig(
        **SIZES, norm_type="rmsnorm", gated_mlp=True, attention_bias=False, mlp_bias=False, hidden_act="silu",
        num_labels=3, pad_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    ours.DeceroDecoderForSequenceClassification(config).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "one", "llama")
    tokenizer.pad_token = tokenizer.sep_token
    tokenizer.save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match=r"its tokenizer ends texts with \[SEP\], which is also its padding token"):
        export_model(tmp_path / "ours", tmp_path / "two", "llama")


@torch.no_grad()
def test_an_imported_roberta_folder_is_checked(tmp_path):
    config = hf.RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=43)
    hf.RobertaForMaskedLM(config).save_pretrained(tmp_path / "stock")
    assert import_model(tmp_path / "stock", tmp_path / "ours").is_dir()
