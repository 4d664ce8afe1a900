"""A small decoder learns to talk: two tasks of dialogues and pairs in one run, then chat, export and stock."""

import io
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from decero.cli.main import main
from decero.data.tokenizer import train_tokenizer
from decero.inference import Conversation, load

COLOURS = {"snow": "white", "coal": "black", "the sky": "blue"}


def dialogue(number, turns):
    """The user asks for colours; the last answer is scored by its words, too."""
    asked = [list(COLOURS)[(number + turn) % len(COLOURS)] for turn in range(turns)]
    talk = [[("user", f"what is {thing}"), ("assistant", f"it is {COLOURS[thing]}.")] for thing in asked]
    messages = [{"role": role, "content": content} for exchange in talk for role, content in exchange]
    return {"messages": messages, "answer": COLOURS[asked[-1]], "turns": turns}


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Dialogues and pairs, a tokenizer without a chat template, and a preset."""
    folder = tmp_path_factory.mktemp("talk")
    for split, size in {"train": 48, "validation": 8, "test": 20}.items():
        rows = [dialogue(number // 2, 1 + number % 2) for number in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = [{"source": "say yes", "target": "yes"}] * (size // 4)
        (folder / f"pairs_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [message["content"] for row in rows for message in row["messages"]] + ["system say yes"]
    train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=293, model_max_length=64, min_frequency=1, show_progress=False
    ).save_pretrained(folder / "tokenizer")
    preset = (Path(__file__).parents[2] / "configs/model/modern_decoder_tiny.yaml").read_text()
    preset = preset.replace("norm_type: layernorm", "norm_type: rmsnorm")  # as Llama has it
    sizes = {"vocab_size": 307, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    for name, value in (sizes | {"num_attention_heads": 2, "max_position_embeddings": 71}).items():
        preset, found = re.subn(rf"(?m)^{name}:.*$", f"{name}: {value}", preset)
        assert found == 1, name
    (folder / "tiny.yaml").write_text(preset)
    splits = ("train", "validation", "test")
    files, pairs = ({s: str(folder / f"{name}{s}.jsonl") for s in splits} for name in ("", "pairs_"))
    memory = {"files": files, "messages_column": "messages", "group_column": "turns", "answer_column": "answer"}
    config = {
        "output": "OUTPUT", "model": {"config": f"{folder}/tiny.yaml"},
        "tokenizer": {"name_or_path": f"{folder}/tokenizer"}, "objective": {"chat_template": "chatml"},
        "data": {"tasks": {"memory": memory, "facts": {"files": pairs}}, "max_source_length": 60,
                 "max_target_length": 11},
        "generation": {"max_new_tokens": 9, "validation_rows": 4},
        "optim": {"learning_rate": 1e-2, "num_warmup_steps": 10},
        "training": {"max_train_steps": 50, "global_batch_size": 12, "per_device_batch_size": 12,
                     "eval_strategy": "steps", "eval_steps": 25},
        "tracking": {"trackers": []},
    }  # fmt: skip
    (folder / "talk.yaml").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def trained(talk, launch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = launch("finetune_causal_lm", talk / "talk.yaml", f"output={talk}/run").stdout
    torch.set_num_threads(threads)
    return talk / "run", printed


def test_a_small_decoder_learns_to_talk(trained):
    folder, printed = trained
    assert f"next: decero chat {folder}/model; decero generate {folder}/model FILE; " in printed
    record = json.loads((folder / "result.json").read_text())
    assert record["metric"]["memory_exact_match"] > 0.9
    assert record["metric"]["memory_answer_found"] > 0.9
    assert record["metric"]["facts_exact_match"] == 1
    groups = record["groups"]["memory by turns"]
    assert list(groups) == ["1", "2"]
    value, low, high = groups["1"]["exact_match"]
    assert low < value <= high <= 1
    assert low < 0.9  # ten examples say little
    assert sum(group["examples"] for group in groups.values()) == 20
    assert "memory by turns 1: exact_match " in printed
    assert "packing: rows of 128 tokens, attention stays within each text" in printed
    assert "% of " in printed
    assert "training tokens are scored" in printed
    table = pd.read_parquet(folder / "outputs.parquet")
    assert list(table["task"].value_counts()) == [20, 5]
    assert json.loads(table["source"][0])[-1] == {"role": "user", "content": "what is snow"}
    assert table["reference"][0] == "it is white."


def test_the_saved_model_stops_where_a_turn_ends(trained):
    model = trained[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = GenerationConfig.from_pretrained(model).eos_token_id
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert "{% generation %}" in tokenizer.chat_template
    conversation = Conversation(load(str(model), "generate"))
    assert [conversation.ask(f"what is {thing}") for thing in ("coal", "snow")] == ["it is black.", "it is white."]


def test_chat_reads_turns_from_a_pipe(trained, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"what is coal\n/reset\nwhat is snow\n"), encoding="utf-8")
    )
    main(["chat", str(trained[0] / "model")])
    assert capsys.readouterr().out.splitlines() == ["it is black.", "it is white."]


def test_an_exported_model_talks_the_same_without_decero(trained, tmp_path, capsys):
    main(["export", str(trained[0] / "model"), str(tmp_path / "stock")])
    capsys.readouterr()
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "stock"),
        AutoTokenizer.from_pretrained(tmp_path / "stock"),
    )
    assert model.config.model_type == "llama"
    main(["generate", str(trained[0] / "model"), "what is snow", "--chat"])
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is snow"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert capsys.readouterr().out.strip() == tokenizer.decode(written, skip_special_tokens=True)
    assert written[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["objective.chat_template=auto"],
            "data.tasks.memory.messages_column: dialogues need a chat template; tokenizer",
        ),
        (["data.tasks.memory.messages_column=message"], "no column 'message'; did you mean messages?"),
        (["data.tasks.memory.group_column=turnz"], "there is no column 'turnz'"),
        (["data.tasks.memory.prefix=x"], "messages_column names whole dialogues, so remove prefix"),
        (["data.max_source_length=9"], "row 1: what the last answer follows has"),
    ],
)
def test_bad_settings_of_dialogues_are_one_line(words, line, talk, launch, tmp_path):
    done = launch("finetune_causal_lm", talk / "talk.yaml", f"output={tmp_path}/run", *words, expect=2)
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 or done.stderr.strip().splitlines()[-1].startswith("error")


@pytest.mark.slow
def test_transformers_serves_the_exported_model(trained, tmp_path):
    for name in ("fastapi", "openai", "uvicorn"):  # of transformers[serving]
        pytest.importorskip(name)
    main(["export", str(trained[0] / "model"), str(tmp_path / "stock")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    words = [sys.executable, "-c", start, "serve", str(tmp_path / "stock"), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        seen = []
        assert any("running on" in (seen.append(line) or line) for line in server.stderr), "".join(seen)
        asked = {"model": str(tmp_path / "stock"), "messages": [{"role": "user", "content": "what is coal"}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(asked | {"stream": False}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)["choices"][0]["message"]["content"]
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    assert said.strip() == "it is black."
