"""Write GGUF files of Llama-shaped decoders with llama.cpp's own package `gguf`, and run them in llama.cpp.

llama.cpp's converter knows tokenizers by a hash of each published one, so it refuses a new one. Here the tokenizer's
parts decide: llama.cpp has counterparts of two kinds of byte-level BPE.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decero.errors import UserError
from decero.hub.engines.engine import Engine, Running
from decero.hub.folders import LINES

FILE = "model.gguf"
TEXTS = (*filter(None, LINES), "  two  spaces,\n\na tab\t1,234.5", "it's we'LL ¿qué? 🙂", "x_y == 10 ** 6;")
BLOCK = 32  # weights of a row that share a scale in Q8_0; a row of another length stays as it is


def convert(model: Any, tokenizer: Any, folder: Path, quantization: str | None) -> None:
    """Write model.gguf: in fp32, or with the matrices in Q8_0 (--quantization int8)."""
    import gguf

    config = model.config
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(f"gguf cannot hold this llama, which has hidden_act={config.hidden_act!r}; its Llama has silu")
    if config.rope_parameters.get("rope_type", "default") != "default":
        raise UserError(f"gguf export supports rope_type default, not {config.rope_parameters['rope_type']!r}")
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    try:
        writer.add_name(folder.name.split(".partial")[0].strip("."))
        kind = gguf.LlamaFileType.MOSTLY_Q8_0 if quantization else gguf.LlamaFileType.ALL_F32
        writer.add_file_type(kind)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        _add_tokenizer(writer, gguf, config, tokenizer)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, tensor in _tensors(model):
            data = tensor.numpy()
            wanted = gguf.GGMLQuantizationType.F32
            if quantization and data.ndim == 2 and data.shape[-1] % BLOCK == 0:
                wanted = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quantize(data, wanted)
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if written is None:
                raise UserError(f"gguf has no place for the tensor {name}")
            writer.add_tensor(written, data, raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def run(folder: Path, model: Any, tokenizer: Any) -> Running:
    """Open the file in llama.cpp, with as many threads as torch has."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / FILE)
    parameters.n_ctx = min(model.config.max_position_embeddings, 4096)
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)

    def count(text: str) -> int:
        request = {"prompt": text, "max_tokens": 1, "temperature": 0.0, "cache_prompt": False}
        return server.handle_completions(request)["usage"]["prompt_tokens"]

    check_tokens(count, tokenizer, model.config.bos_token_id, parameters.n_ctx)

    def write(prompt: list[int], new: int) -> list[int]:
        request = {"prompt": prompt, "max_tokens": new, "temperature": 0.0, "cache_prompt": False}
        answer = server.handle_completions(request | {"return_tokens": True, "verbose": True})["__verbose"]
        end = [model.generation_config.eos_token_id] if answer["stop_type"] == "eos" else []
        return answer["tokens"] + (end if answer["tokens"][-1:] != end else [])

    return Running(None, write)


def check_tokens(count: Callable[[str], int], tokenizer: Any, bos: int | None, room: int) -> None:
    """Raise UserError for a text that llama.cpp cuts into another number of tokens than the tokenizer does.

    count: a text -> its tokens in llama.cpp, with the start token. room: tokens that fit; longer texts are left out.
    """
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = len(ids) + (bos is not None and tokenizer("a")["input_ids"][0] == bos)
        if 0 < wanted < room and (found := count(text)) != wanted:
            raise UserError(
                f"gguf: llama.cpp cuts {text!r} into {found} tokens, and the tokenizer into {wanted}; train one with "
                "tokenizer.algorithm=byte_level_bpe"
            )


def usage(name: str, model: Any) -> str:
    """Return the lines that run the file; any program with llama.cpp inside reads it."""
    return (
        "import xllamacpp\n\nparameters = xllamacpp.CommonParams()\n"
        f'parameters.model.path = "{name}/{FILE}"\n'
        "server = xllamacpp.Server(parameters)\n"
        'answer = server.handle_completions({"prompt": "...", "max_tokens": 64})\n'
        'text = answer["choices"][0]["text"]'
    )


def _tensors(model: Any):
    """Yield (name, tensor). Queries and keys are permuted: llama.cpp turns neighbours, transformers halves."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        part = name.split(".")[-2]
        yield name, _interleaved(tensor, heads[part]) if part in heads else tensor.contiguous()


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from (first half, second half) to pairs."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _add_tokenizer(writer: Any, gguf: Any, config: Any, tokenizer: Any) -> None:
    """Write vocabulary, merges and special tokens. No end token goes behind a prompt: text is to follow."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = pre_tokenizer_of(content)
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    types, tokens = [], []
    for number in range(config.vocab_size):
        tokens.append(known.get(number, f"[unused{number}]"))
        written = gguf.TokenType.UNUSED if number not in known else gguf.TokenType.NORMAL
        if number in special:
            written = gguf.TokenType.CONTROL if special[number] else gguf.TokenType.USER_DEFINED
        types.append(written)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ends = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    for name, number in (("bos", config.bos_token_id), ("eos", ends), ("pad", config.pad_token_id)):
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(config.bos_token_id is not None and first == config.bos_token_id)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_of(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for the way a tokenizer.json cuts a text into words.

    Raises UserError for a tokenizer that llama.cpp would read differently.
    """
    byte_level = {"add_prefix_space": False, "use_regex": True, "type": "ByteLevel"}
    digits = {"individual_digits": True, "type": "Digits"}
    plain = (None, {"type": "Sequence", "normalizers": []})
    problem = None
    if content["model"]["type"] != "BPE":
        problem = f"its model is {content['model']['type']}"
    elif content["model"].get("byte_fallback") or content["model"].get("continuing_subword_prefix"):
        problem = "its BPE is not byte-level"
    elif content["normalizer"] not in plain:
        problem = "it changes the text first, for example to lower case"
    else:
        way = dict(content["pre_tokenizer"] or {})
        steps = way.get("pretokenizers") if way.get("type") == "Sequence" else [way]
        steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps or []]
        if steps == [byte_level]:
            return "gpt-2"
        if steps == [digits, byte_level]:
            return "smollm"
        problem = "it cuts words in its own way"
    raise UserError(
        f"gguf: llama.cpp has no counterpart of this tokenizer: {problem}; train one with "
        "tokenizer.algorithm=byte_level_bpe"
    )


GGUF = Engine(
    name="gguf",
    packages=("gguf", "xllamacpp"),
    heads={"llama": ("ForCausalLM",)},
    quantizations=("int8",),
    weights=(FILE,),
    convert=convert,
    run=run,
    usage=usage,
    library="gguf",
    keeps_tokenizer=False,
)
