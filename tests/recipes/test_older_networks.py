"""Recurrent and convolutional networks through the recipes and commands that Transformers use."""

import json

import pandas as pd
import pytest

from decero.cli.main import main

COMMON = """\
output: OUTPUT
seed: 3
model: {{config: {model}}}
tokenizer: {{name_or_path: {tokenizer}}}
data: {{files: {files}, {data}}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training: {{max_train_steps: {steps}, global_batch_size: 12, per_device_batch_size: 6, logging_steps: 1, save_steps: 4}}
tracking: {{trackers: []}}
{more}
"""
SIZES = "vocab_size: 113\nhidden_size: 22\nnum_hidden_layers: 2\n"
MODELS = {  # two layers of a kernel of 13 see 25 tokens, so a whole text
    "lstm": "model_type: decero_decoder\nmixer_type: lstm\nposition_embedding_type: none\n"
    f"{SIZES}intermediate_size: 37\n",
    "conv": "model_type: decero_decoder\nmixer_type: conv\nposition_embedding_type: none\nconv_kernel_size: 13\n"
    f"{SIZES}intermediate_size: 37\n",
    "recurrent": f"model_type: decero_recurrent\n{SIZES}",
    "bilstm": f"model_type: decero_recurrent\nbidirectional: true\n{SIZES}",
    "textcnn": "model_type: decero_textcnn\nvocab_size: 113\nhidden_size: 22\nnum_filters: 7\n",
    "translator": f"model_type: decero_recurrent_seq2seq\n{SIZES}",
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")

    def write(name):
        (folder / f"{name}.yaml").write_text(MODELS[name])
        return folder / f"{name}.yaml"

    return write


@pytest.fixture(scope="module")
def bpe(launch, write_config, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "bpe"
    algorithm = "tokenizer: {algorithm: byte_level_bpe, vocab_size: 293}"
    launch("train_tokenizer", write_config("bpe", f"output: {output}\ndata: {{files: FILES}}\n{algorithm}\n"))
    return output / "model"


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def refused(arguments, capsys):
    """Run a command that must fail. Returns its one line."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.mark.parametrize("name", ["lstm", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_a_recurrent_language_model_learns_and_writes(
    launch, write_config, preset, bpe, elsewhere, tmp_path, name, capsys
):
    fields = {
        "model": preset(name),
        "tokenizer": bpe,
        "files": "FILES",
        "data": "max_length: 17",
        "steps": 9,
        "more": "",
    }
    config, vocabulary = write_config("causal", COMMON.format(**fields)), "model.overrides.vocab_size=307"
    run = tmp_path / "run"
    assert "packing: off" in launch("pretrain_causal_lm", config, f"output={run}", vocabulary).stdout
    assert losses(run)[-1] < losses(run)[0] - 0.3
    launch("pretrain_causal_lm", config, f"output={tmp_path}/dry", vocabulary, "--dry-run")
    (tmp_path / "prompts.txt").write_text("the bank\nthe team won the\n")
    main(["generate", f"{run}/model", f"{tmp_path}/prompts.txt", "--max-new-tokens", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    explain = ["explain", f"{run}/model", "the bank"]
    assert "lstm has no attention to show" in refused([*explain, "--out", f"{tmp_path}/page.html"], capsys)
    if name == "lstm":
        said = refused(["export", f"{run}/model", f"{tmp_path}/stock", "--to", "gpt2"], capsys)
        assert "mixer_type='lstm' has no counterpart in gpt2; use --to remote-code" in said
    main(["export", f"{run}/model", f"{tmp_path}/code"])
    assert (tmp_path / "code" / "mixers.py").exists()


@pytest.mark.parametrize(
    "name", ["textcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bilstm", "conv"))]
)
def test_an_older_network_learns_to_classify(launch, write_config, preset, trained_tokenizer, tmp_path, name):
    data = "label_column: label, max_length: 24"
    fields = {"model": preset(name), "tokenizer": trained_tokenizer, "files": "FILES", "data": data, "steps": 40}
    config = write_config("classes", COMMON.format(**fields, more=""))
    done = launch("finetune_classification", config, f"output={tmp_path}/run")
    assert "packing: off" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"]["accuracy"] > 0.9


@pytest.mark.slow  # test_words.py tags with Transformers
def test_a_bilstm_learns_to_tag(launch, preset, trained_tokenizer, tmp_path):
    words = ["the", "bank", "raised", "its", "rate", "striker"]
    rows = [{"tokens": words[i % 4 :], "ner_tags": ["B-x" if w in ("bank", "striker") else "O" for w in words[i % 4 :]]}
            for i in range(24)]  # fmt: skip
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ", ".join(f"{split}: {tmp_path}/{split}.jsonl" for split in ("train", "validation", "test"))
    fields = {"model": preset("bilstm"), "tokenizer": trained_tokenizer, "files": f"{{{files}}}", "steps": 90}
    (tmp_path / "tags.yaml").write_text(COMMON.format(**fields, data="max_length: 24", more=""))
    launch("finetune_token_classification", tmp_path / "tags.yaml", f"output={tmp_path}/run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"]["f1"] > 0.9


@pytest.mark.long
def test_lstms_with_attention_learn_to_translate(launch, translate, preset, tmp_path):
    words = f"model.config={preset('translator')}", "training.max_train_steps=40", "training.eval_steps=20"
    done = launch("finetune_seq2seq", translate, f"output={tmp_path}/run", *words, "generation.num_beams=2")
    assert "packing: off" in done.stdout
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 1
    assert len(pd.read_parquet(tmp_path / "run" / "outputs.parquet")) == 17
