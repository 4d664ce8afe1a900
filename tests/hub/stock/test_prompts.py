"""What a stock `pipeline` makes of an exported decoder: it continues a prompt, in a batch as alone."""

import json

import pytest
import torch
import transformers as hf

from decero.data.tokenizer import train_tokenizer
from decero.execution.decoder_tokenizer import fit_decoder
from decero.hub.convert import export_model
from decero.inference import generate
from decero.models import DeceroDecoderConfig, DeceroDecoderForCausalLM

PROMPTS = ["the market rose fell sharply on", "banks"]


@pytest.fixture(params=["saved today", "saved before"])
def folder(request, texts, tmp_path):
    """A decoder that learnt to end a text soon, with the tokenizer of a run; older ones end every prompt."""
    tokenizer = train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=307, model_max_length=64, show_progress=False
    )
    if request.param == "saved today":
        fit_decoder(tokenizer)
    torch.manual_seed(3)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = DeceroDecoderConfig(
        vocab_size=307, hidden_size=44, num_hidden_layers=2, num_attention_heads=2, intermediate_size=41,
        attention_bias=False, mlp_bias=False, norm_type="rmsnorm", gated_mlp=True, hidden_act="silu",
        initializer_range=0.5, max_position_embeddings=64, **ids,
    )  # fmt: skip
    model = DeceroDecoderForCausalLM(config)
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_the_stock_pipeline_goes_on_where_the_prompt_ends(folder, tmp_path):
    said = []
    stock = export_model(folder, tmp_path / "stock", say=said.append)
    assert json.loads((stock / "config.json").read_text())["model_type"] == "llama"
    assert len([line for line in said if line.startswith("the saved tokenizer encodes 4 test lines as before")]) == 1
    pipe = hf.pipeline("text-generation", model=str(stock), device="cpu")
    read = pipe.tokenizer(PROMPTS, padding=True)["input_ids"]
    assert not any(pipe.tokenizer.eos_token_id in ids for ids in read)
    expected = list(generate(str(folder), PROMPTS, max_new_tokens=7))
    assert all(expected)
    for size in (1, 2):
        found = pipe(PROMPTS, batch_size=size, return_full_text=False, do_sample=False)
        assert [answers[0]["generated_text"].strip() for answers in found] == expected


@pytest.mark.parametrize("folder", ["saved before"], indirect=True)
def test_an_older_folder_leaves_with_open_prompts_as_remote_code(folder, elsewhere, tmp_path):
    out = export_model(folder, tmp_path / "portable", to="remote-code")
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    assert tokenizer(PROMPTS[0])["input_ids"][-1] != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"
