"""Tiny stock and decero checkpoints, damaged, and read by every command and recipe that reads one.

An answer must not be drawn at random: a command that ends well is started again and must say the same.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tests.faults.case import Case, Place, Step
from tests.faults.world import MEASURES

SHAPES = {  # name -> (kind of tokenizer, auto class, what it is used for)
    "bert_mlm": ("encoder", "MaskedLM", "fill score pretrain_mlm evaluate_masked_lm evaluate_minimal_pairs import"),
    "bert_classifier": ("encoder", "SequenceClassification", "classify finetune_classification import"),
    "bert_tagger": ("encoder", "TokenClassification", "extract finetune_token_classification import"),
    "gpt2": ("decoder", "CausalLM", "generate score pretrain_causal_lm finetune_causal_lm evaluate_causal_lm import"),
    "llama": ("decoder", "CausalLM", "generate finetune_causal_lm evaluate_causal_lm finetune_classification import"),
    "t5": ("encoder_decoder", "Seq2SeqLM", "translate summarize finetune_seq2seq pretrain_seq2seq import"),
    "bart": ("encoder_decoder", "Seq2SeqLM", "translate finetune_seq2seq import"),
    "decero_mlm": ("encoder", "MaskedLM", "fill score pretrain_mlm finetune_classification probe_bias export"),
    "decero_classifier": ("encoder", "SequenceClassification", "classify finetune_classification export"),
    "decero_decoder": ("decoder", "CausalLM", "generate score finetune_causal_lm evaluate_causal_lm probe_bias export"),
    "decero_encoder_decoder": ("encoder_decoder", "Seq2SeqLM", "translate finetune_seq2seq export"),
}


def build(folder: str, *tokenizers: str) -> None:
    """Write every checkpoint. tokenizers: of encoders, decoders and encoder-decoders. Runs in a child of the server."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    import decero.models  # noqa: F401

    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 23}
    bert, ids = sizes | {"vocab_size": 97, "max_position_embeddings": 61}, {"pad_token_id": 0, "eos_token_id": 1}
    labels = {"id2label": {0: "money", 1: "sport", 2: "court"}, "label2id": {"money": 0, "sport": 1, "court": 2}}
    seq2seq, causal = bert | {"vocab_size": 113} | ids, bert | {"vocab_size": 307} | ids
    gpt2 = {"n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 61, "vocab_size": 307} | ids
    t5 = {"d_model": 20, "d_kv": 10, "d_ff": 23, "num_layers": 2, "num_heads": 2, "vocab_size": 113} | ids
    bart = {"d_model": 20, "vocab_size": 113, "max_position_embeddings": 61, "bos_token_id": 0} | ids
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 23}
    fields = {
        "bert_mlm": ("bert", bert),
        "bert_classifier": ("bert", bert | labels),
        "bert_tagger": ("bert", bert | labels),
        "gpt2": ("gpt2", gpt2),
        "llama": ("llama", causal | {"num_key_value_heads": 1}),
        "t5": ("t5", t5 | {"decoder_start_token_id": 0}),
        "bart": ("bart", bart | {"decoder_start_token_id": 1}),
        "decero_mlm": ("decero_encoder", bert),
        "decero_classifier": ("decero_encoder", bert | labels),
        "decero_decoder": ("decero_decoder", causal),
        "decero_encoder_decoder": ("decero_encoder_decoder", seq2seq),
    }
    order = ("encoder", "decoder", "encoder_decoder")
    for name, (kind, auto, _) in SHAPES.items():
        transformers.set_seed(3)
        model_type, more = fields[name]
        model = getattr(transformers, f"AutoModelFor{auto}").from_config(AutoConfig.for_model(model_type, **more))
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=0.3)
        model.save_pretrained(Path(folder) / name)
        AutoTokenizer.from_pretrained(tokenizers[order.index(kind)]).save_pretrained(Path(folder) / name)


# --- damage: each takes (dice, folder) and returns what it did


def change_json(name, change):
    def damage(dice, folder):
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        done = change(dice, content)
        path.write_text(json.dumps(content))
        return f"{name}: {done}"

    return damage


JUNK = [None, -1, 0, 1.5, 10**12, 2**63, "text", "", [], {}, [None], {"a": [1]}, True, [1, 2], "../x", "a" * 2000]


def junk(dice, content):
    key, value = dice.choice([*content, "new"]), dice.choice(JUNK)
    content[key] = value
    return f"{key} = {str(value)[:30]}"


def junk_inside(dice, content):
    """Junk one or more levels deeper, as in tokenizer.json."""
    inner, path = content, []
    while True:
        keys = [
            k
            for k, v in (inner.items() if isinstance(inner, dict) else enumerate(inner))
            if isinstance(v, dict | list) and v
        ]
        if not keys or (path and dice.random() < 0.3):
            break
        path.append(dice.choice(keys[:20]))
        inner = inner[path[-1]]
    return (
        f"{'.'.join(map(str, path))}.{junk(dice, inner)}"
        if isinstance(inner, dict)
        else str(inner.append(dice.choice(JUNK)))
    )


def lose(dice, content):
    key = dice.choice(list(content) or ["x"])
    content.pop(key, None)
    return f"no {key}"


def evil_code(dice, content):
    code = dice.choice(["evil.Evil", "../evil.Evil", "other/code--evil.Evil", "evil", "", 7, ["evil.Evil", None]])
    content["auto_map"] = {"AutoConfig": code, "AutoModel": code, "AutoModelForMaskedLM": code, "AutoTokenizer": code}
    if dice.random() < 0.6:
        content["model_type"] = "evil"
    return f"auto_map {code}"


def labels(dice, content):
    content["id2label"] = dice.choice(
        [{"0": "a", "1": "a", "2": "b"}, {"0": "a"}, {"x": "a"}, {"5": "a", "6": "b"}, ["a", "b"], {"0": None, "1": 7}]
    )
    content["label2id"] = dice.choice([content.get("label2id"), {"a": 9}, {}, "x"])
    return f"id2label {content['id2label']}"


CHATS = [
    "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}", "{{ raise_exception('no') }}",
    "{% if %}", "{{ messages[7].x.y }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "", "{{ 'a' * 10**9 }}",
    "{{ messages.__class__.__mro__ }}", "{{ undefined }}", "{{ 1 / 0 }}",
]  # fmt: skip


def chat(dice, folder):
    template = dice.choice(CHATS)
    (folder / "chat_template.jinja").write_text(template)
    return f"chat template {template[:40]}"


def bytes_of(dice, folder, change, names=None):
    path = dice.choice(sorted(p for p in folder.iterdir() if p.is_file() and (names is None or p.name in names)))
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))
    return path.name


def cut(dice, folder):
    return "cut " + bytes_of(dice, folder, lambda data: data.__delitem__(slice(dice.randrange(len(data) + 1), None)))


def flip(dice, folder):
    def change(data):
        for _ in range(dice.choice([1, 1, 5, 50])):
            data[dice.randrange(min(len(data), dice.choice([40, 2000, 10**9])))] ^= 1 << dice.randrange(8)

    return "flipped bits in " + bytes_of(dice, folder, change)


def replace(dice, folder):
    path = dice.choice(sorted(p for p in folder.iterdir()))
    path.unlink()
    how = dice.choice(
        ["gone", "a folder", "a pipe", "a loop", "a link to nowhere", "a device", "empty", "text", "binary", "a list"]
    )
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how in ("a loop", "a link to nowhere", "a device"):
        path.symlink_to({"a loop": path.name, "a link to nowhere": "nowhere", "a device": "/dev/zero"}[how])
    elif how != "gone":
        path.write_bytes({"empty": b"", "text": b"hello", "binary": bytes(range(256)), "a list": b"[1]"}[how])
    return f"{path.name}: {how}"


def weights(change):
    def damage(dice, folder):
        path = folder / "model.safetensors"
        tensors = {k: v.copy() for k, v in load(path.read_bytes()).items()}
        said = change(dice, tensors)
        path.write_bytes(save(tensors, {"format": "pt"}))
        return said

    return damage


def prefix(dice, tensors):
    word = dice.choice(["_orig_mod.", "module.", "model.", "_fsdp_wrapped_module.", "x."])
    for name in list(tensors):
        tensors[word + name] = tensors.pop(name)
    return f"prefix {word}"


def lose_tensors(dice, tensors):
    lost = dice.sample(sorted(tensors), dice.choice([1, 1, 3, len(tensors) // 2]))
    for name in lost:
        del tensors[name]
    return f"without {lost[0]}"


def lose_head(dice, tensors):
    for name in [n for n in tensors if n.split(".")[0] in ("cls", "classifier", "lm_head", "score", "head")]:
        del tensors[name]
    return "without a head"


def values(dice, tensors):
    name, value = dice.choice(sorted(tensors)), dice.choice([np.nan, np.inf, -np.inf, 1e38])
    place = dice.choice([slice(None), slice(0, 1)])
    tensors[name][place] = value
    return f"{name} is {value}"


def shapes(dice, tensors):
    name = dice.choice(sorted(tensors))
    old = tensors[name]
    tensors[name] = dice.choice(
        [
            old[:-1],
            old.reshape(-1),
            old[..., None],
            np.zeros((0,), np.float32),
            np.nan_to_num(old).astype(np.int64),
            old.astype(np.float16),
            old.T.copy(),
        ]
    )
    return f"{name} has shape {tensors[name].shape} {tensors[name].dtype}"


def index(dice, folder):
    """An index that names what it should not."""
    names = list(load((folder / "model.safetensors").read_bytes()))
    target = dice.choice(
        [
            "../secret.safetensors",
            "/etc/passwd",
            "a.bin",
            "",
            ".",
            "model.safetensors",
            "gone.safetensors",
            7,
            None,
            "a\u0000b",
        ]
    )
    if target != "model.safetensors":
        (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "a.bin").write_bytes(pickle.dumps(Trap()))
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    content = dice.choice([content, content, content, {"weight_map": []}, [], {}, {"weight_map": {}}])
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return f"an index of {target!r}"


class Trap:
    """An object that writes a file into the working folder when it is unpickled."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


def in_disguise(dice, folder):
    (folder / "model.safetensors").unlink()
    name = dice.choice(["pytorch_model.bin", "model.safetensors", "model.pt", "tf_model.h5", "model.ckpt.index"])
    (folder / name).write_bytes(pickle.dumps(Trap()))
    return f"a pickle as {name}"


def header(dice, folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = dice.choice([0, 1, 2**62, len(data), len(data) * 2, 2**31])
    path.write_bytes(struct.pack("<Q", size) + data[8:])
    return f"a header of {size} bytes"


def more_tokens(dice, folder):
    """More tokens in the tokenizer than rows in the embedding."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for number in range(dice.choice([1, 300])):
        extra = {
            "id": 400 + number,
            "content": dice.choice(["market", f"<new{number}>"]),
            "single_word": False,
            "lstrip": False,
        }
        content["added_tokens"].append(extra | {"rstrip": False, "normalized": False, "special": dice.random() < 0.5})
    path.write_text(json.dumps(content))
    return "more tokens than rows"


def special_tokens(dice, content):
    name = dice.choice(["pad_token", "eos_token", "mask_token", "unk_token", "cls_token", "bos_token"])
    content[name] = dice.choice([None, "absent", "", 7, {"content": "x"}, "market", "</s>"])
    return f"{name} = {content[name]}"


DAMAGES = [
    *[cut, flip, replace] * 2, chat, index, in_disguise, header, more_tokens,
    *[weights(each) for each in (prefix, lose_tensors, lose_head, values, shapes)] * 2,
    *[change_json("config.json", each) for each in (junk, junk, junk, lose, evil_code, labels)],
    *[change_json("tokenizer_config.json", each) for each in (junk, lose, special_tokens, evil_code)],
    *[change_json("tokenizer.json", each) for each in (junk_inside, junk_inside, junk, lose)],
    change_json("generation_config.json", junk),
]  # fmt: skip
# What a second damage runs into after the first.
NOTHING_LEFT = (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError, SafetensorError)
HARMLESS = [lambda dice, folder: "nothing is damaged"]


def use(place: Place, name: str, folder: Path) -> Step:
    """Draw a command or a recipe that reads the folder."""
    dice = place.dice
    task = dice.choice([*SHAPES[name][2].split(), "push", "compare", "doctor"])
    remote = ["--trust-remote-code", "--revision", dice.choice(["main", "a" * 40])] if dice.random() < 0.1 else []
    if task == "push":
        return Step("decero", ["push", folder, "me/model", "--dry-run"])
    if task == "doctor":
        return Step("decero", ["doctor", folder], codes=(0, 1))
    if task == "import":
        return Step("decero", ["import", folder, place.out / "model"])
    if task == "export":
        return Step(
            "decero",
            [
                "export",
                folder,
                place.out / "model",
                "--to",
                dice.choice(["auto", "remote-code", "bert", "gpt2", "t5", "bart"]),
            ],
        )
    if task in ("fill", "score", "classify", "generate", "translate", "summarize"):
        more = ["--jsonl"] if dice.random() < 0.5 else []
        more += ["--chat"] if task == "generate" and dice.random() < 0.5 else []
        more += ["--max-new-tokens", 5] if task in ("generate", "translate", "summarize") else []
        return Step("decero", [task, folder, "the market [MASK] rose\nthe team won", *more, *remote])
    if task == "compare":
        theirs = json.dumps({"model": {"name_or_path": str(folder)}})
        return Step(
            "compare",
            [place.world.config("compare"), f"output={place.out}", f"contenders.theirs={theirs}", "seeds=[0]"],
        )
    model = json.dumps(
        {"name_or_path": str(folder)} | ({"trust_remote_code": True, "revision": remote[-1]} if remote else {})
    )
    more = ["--dry-run"] if task not in MEASURES and dice.random() < 0.3 else []
    words = [f"output={place.out}", f"model={model}", "tokenizer={name_or_path: null}", *more]
    return Step(task, [place.world.config(task), *words])


def same_twice(done) -> str | None:
    """Answers that differ from run to run come from weights that nobody trained."""
    answers = {each.out for each in done if each.code == 0}
    return "another answer each time: weights that are not there are drawn at random" if len(answers) > 1 else None


def draw(place: Place) -> Case:
    dice: random.Random = place.dice
    name = dice.choice(list(SHAPES))
    folder = place.given / "model"
    shutil.copytree(place.world.models() / name, folder)
    (folder / "evil.py").write_text("open('sprung', 'w')\n\n\nclass Evil:\n    pass\n")
    story = [name]
    for _ in range(dice.choice([1, 1, 1, 2])):
        damage = dice.choice(HARMLESS if dice.random() < 0.03 else DAMAGES)
        with contextlib.suppress(*NOTHING_LEFT):
            story.append(damage(dice, folder))
        if damage is replace:  # another damage might wait for a pipe
            break
    step = use(place, name, folder)
    writing = ("fill", "score", "classify", "generate", "translate", "summarize")
    texts = step.program == "decero" and step.words[0] in writing
    return Case([step, step] if texts else [step], story, same_twice if texts else lambda done: None)
