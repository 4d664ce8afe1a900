"""Record one text with every family of text models that transformers has, tiny, and count what comes of it.

    python -m decero.benchmark.attention_survey [FAMILY ...]

Prints a table: heat maps, or refused and why. Each recording is compared with what the model itself gives for
`output_attentions`, and with its logits without recording.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.pretrained import one_line
from decero.execution.transformers_internals import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    attending_with,
)
from decero.explain.capture import by_kind, call_order, run
from decero.explain.lens import lens
from decero.explain.record import accepted, answer_of, as_recorded, read_texts, record
from decero.explain.recording import Recording
from decero.explain.residual_stream import reads_target

TEXT = "the market rose sharply on monday"
TARGET = "shares fell in london"
MOST = 2 * 10**7  # parameters of a tiny model
AUTOS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
)
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 0}
# Whatever the families call their sizes; each gets those that its configuration knows.
SIZES = IDS | {
    "vocab_size": 128, "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "dim": 32, "embedding_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2, "num_query_groups": 2,
    "intermediate_size": 40, "d_ff": 40, "d_inner": 40, "n_inner": 40, "ffn_dim": 40, "hidden_dim": 40,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "ffn_hidden_size": 40, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "word_embed_proj_dim": 32,
    "head_dim": 8, "d_kv": 8, "d_head": 8, "rotary_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "seq_length": 64,
    "sliding_window": 7, "attention_window": 16,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "forced_eos_token_id": None, "forced_bos_token_id": None,
}  # fmt: skip
UNGROUPED = {"num_key_value_heads": 4}  # the latent attention of DeepSeek
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
# What a family needs besides, or instead; None takes a size away.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
         "minicpm3", "sarvam_mla", "youtu", "esmc"), UNGROUPED,
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text", "lfm3"), MIXED),
    "kimi_linear": MIXED | UNGROUPED,
    "bailing_hybrid": MIXED | UNGROUPED,
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 7},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "luke": {"entity_vocab_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {"num_hidden_layers": None, "num_layers": None},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": False, "attn_layers": ["local", "lsh"], "axial_pos_embds": False, "num_buckets": 2},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


@dataclass
class Surveyed:
    """Say what came of one family.

    result: `heat maps`, `refused` or `not built`. why: of the last two, one line. attentions: kind -> layers x heads.
    own_code: whether it was asked for output_attentions, instead of going through the attention interface.
    off: largest difference to its own output_attentions. lens: share of positions where the last row of the lens is the
    model's own answer; None without a lens. value_norms: whether they were found.
    """

    family: str
    result: str
    why: str = ""
    attentions: str = ""
    own_code: bool = False
    off: float = 0.0
    lens: float | None = None
    value_norms: bool = False
    seconds: float = 0.0


def families() -> list[str]:
    """Return the model types that transformers lists as language models."""
    return sorted({family for _, names in AUTOS for family in names})


def toy_tokenizer() -> PreTrainedTokenizerBase:
    """Train a tokenizer with 13 sentinels that every tiny model can read."""
    return train_tokenizer(
        [TEXT, TARGET], algorithm="unigram", vocab_size=96, model_max_length=64, num_sentinels=13,
        show_progress=False,
    )  # fmt: skip


def build(family: str) -> PreTrainedModel:
    """Build a tiny model of a family, with random weights.

    Raises UserError when the family cannot be made tiny by its sizes alone.
    """
    auto = next(auto for auto, names in AUTOS if family in names)
    with one_line(family):
        config_class: Any = CONFIG_MAPPING[family]
        default = config_class()
        own = OWN.get(family, {})
        known = {name: value for name, value in SIZES.items() if name in IDS or _settable(config_class, default, name)}
        sizes = {name: value for name, value in (known | own).items() if value is not None or "token_id" in name}
        config = config_class(**sizes)
        with torch.device("meta"):
            count = sum(each.numel() for each in auto.from_config(config).parameters())
        if count > MOST:
            raise UserError(f"its sizes are in parts of its configuration: {count:,} parameters")
        torch.manual_seed(0)
        model = auto.from_config(config)
    for each in model.parameters():  # the usual tiny weights attend evenly, which proves little
        if each.dim() == 2:
            each.data.normal_(0, 0.2)
    return model


def _settable(config_class: Any, default: Any, name: str) -> bool:
    kind = getattr(config_class, name, None)
    return hasattr(default, name) and not (isinstance(kind, property) and kind.fset is None)


def examine(family: str, tokenizer: PreTrainedTokenizerBase, text: str = TEXT) -> Surveyed:
    """Build one family, record a text, and compare with what the model gives itself."""
    start = time.process_time()
    try:
        model = build(family).train()
    except UserError as error:
        return Surveyed(family, "not built", _short(family, error))
    found = Surveyed(family, "heat maps")
    target = TARGET if reads_target(model) else None
    try:
        recording = record(model, tokenizer, text, target=target, values=True, hidden=True)
    except UserError as error:
        found.result, found.why = "refused", _short(family, error)
    else:
        found.attentions = ", ".join(f"{k} {a.num_layers} x {a.num_heads}" for k, a in recording.attentions.items())
        found.value_norms = all(each.value_norms for each in recording.attentions.values())
        found.off, found.own_code = _difference(model, tokenizer, recording)
    try:
        seen = lens(model, tokenizer, text, target=target)
        found.lens = _agreement(model, tokenizer, seen.ids[-1, :, 0], text, target)
    except UserError:
        found.lens = None
    found.seconds = time.process_time() - start
    return found


def _difference(model: PreTrainedModel, tokenizer: Any, recording: Recording) -> tuple[float, bool]:
    """Return the largest difference to the model's own output_attentions, and whether it has code of its own."""
    with one_line(recording.family), as_recorded(model):
        source, decoder, _ = read_texts(model, tokenizer, recording.text, None, recording.target)
        inputs = accepted(model, source.inputs | (decoder.inputs if decoder else {}))
        how = call_order(model, inputs)
        with attending_with(model, "eager"):
            own = by_kind(run(model, inputs, output_attentions=True), recording.attentions)
    differences = [
        float((torch.tensor(weights) - own[kind][layer][0]).abs().max())
        for kind, attention in recording.attentions.items()
        for layer, weights in attention.weights.items()
    ]
    return max(differences), how is not None and how.calls is None


def _agreement(model: PreTrainedModel, tokenizer: Any, answers: Any, text: str, target: str | None) -> float:
    """Return the share of positions where `answers` are the model's own likeliest tokens."""
    with as_recorded(model):
        source, decoder, _ = read_texts(model, tokenizer, text, None, target)
        inputs = accepted(model, source.inputs | (decoder.inputs if decoder else {}))
        with attending_with(model, "eager"):
            own = answer_of(run(model, inputs))[0].argmax(-1)
    return float((own.numpy() == answers).mean())


def _short(family: str, error: UserError) -> str:
    text = str(error).removeprefix(f"{family}: ")
    return text if len(text) <= 150 else f"{text[:150]}..."


def survey(names: Sequence[str] = (), said: Callable[[str], None] | None = None) -> list[Surveyed]:
    """Examine the families, all of transformers without `names`."""
    tokenizer = toy_tokenizer()
    rows = []
    for name in names or families():
        rows.append(examine(name, tokenizer))
        if said:
            said(table_row(rows[-1]))
    return rows


def table_row(row: Surveyed) -> str:
    """Write a family as a row of a Markdown table."""
    if row.result != "heat maps":
        return f"| {row.family} | {row.result} | {row.why} | | | {_percent(row.lens)} |"
    way = "own code" if row.own_code else "interface"
    return (
        f"| {row.family} | heat maps | {row.attentions} | {way}, {row.off:.0e} | {'yes' if row.value_norms else 'no'} "
        f"| {_percent(row.lens)} |"
    )


def _percent(share: float | None) -> str:
    return "no" if share is None else f"{share:.0%}"


def main() -> None:
    """Print the table, then the counts."""
    print("| family | result | layers x heads, or why | way, largest difference | value norms | lens = answer |")
    print("|:--|:--|:--|:--|:--|--:|", flush=True)
    rows = survey(sys.argv[1:], lambda line: print(line, flush=True))
    shown = [row for row in rows if row.result == "heat maps"]
    print("\n" + ", ".join(f"{count} {result}" for result, count in Counter(row.result for row in rows).items()))
    off = max((row.off for row in shown), default=0.0)
    print(f"own code {sum(row.own_code for row in shown)}, value norms {sum(row.value_norms for row in shown)}")
    print(f"largest difference {off:.1e}, {sum(row.seconds for row in rows):.0f} seconds")
    print(f"lens {sum(row.lens is not None for row in rows)}, all answers the same {sum(r.lens == 1 for r in rows)}")


if __name__ == "__main__":
    main()
