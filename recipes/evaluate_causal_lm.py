"""Measure how well a decoder foresees a text: loss, perplexity, bits a byte; n-grams and compressors beside it.

python recipes/evaluate_causal_lm.py configs/evaluate/gpt_en.yaml [key.sub=value ...] [--resume]
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from transformers import AutoModelForCausalLM

from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, ModelSection, TokenizerSection, TrainingSection
from decero.data.causal import count_bytes, tokenize_text
from decero.data.corpus import load_corpus
from decero.data.tokenization import count_tokens
from decero.errors import UserError, run
from decero.execution.attention_kernels import choose_attention
from decero.execution.build import build_model, tokenizer_for
from decero.tasks.likelihood import baseline_bits_per_byte, text_likelihood
from decero.training.runs import finished, main_first, start, write_result


class TextSection(DataSection):
    start_token: str | None = Field(
        None, description="token before each row; the tokenizer's bos (else its eos) when not set"
    )


class EvaluateCausalLM(RunConfig):
    options = ("--resume",)

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: TextSection
    split: Literal["train", "validation", "test"] = Field("validation", description="the text that is measured")
    baselines: list[Literal["ngram", "lzma", "zlib"]] = Field(
        [], description="beside the model, each having read data.files.train: byte 6-grams, compressors"
    )
    per_device_eval_batch_size: int = Field(16, ge=1, description="rows a batch; changes no figure")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16 computes matrix products in bfloat16")


def main():
    config = EvaluateCausalLM.from_cli()
    accelerator = start(config, TrainingSection(max_train_steps=1, mixed_precision=config.mixed_precision))
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']}")
    data = config.data

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("eos_token",))
    model = build_model(config.model, AutoModelForCausalLM, tokenizer, data.max_length, config.seed)
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus = load_corpus(**data.source())
        if config.split not in corpus:
            raise UserError(f"split: the corpus has no {config.split}, only {', '.join(corpus)}; name its files")
        rows = tokenize_text(
            corpus[config.split], tokenizer, max_length=data.max_length, text_column=data.text_column,
            start_token=data.start_token, num_proc=data.num_proc, where=config.split,
        )  # fmt: skip

    accelerator.print(choose_attention(model, accelerator.device, config.mixed_precision))
    model = accelerator.prepare_model(model, evaluation_mode=True)  # computes as it does in a run
    metric = text_likelihood(accelerator, model, rows, tokenizer, config.per_device_eval_batch_size)
    size, tokens = count_bytes(rows), count_tokens(rows) - len(rows)
    beside = {}
    if config.baselines:
        train, text = ([t or "" for t in corpus[split][data.text_column]] for split in ("train", config.split))
        beside = {name: baseline_bits_per_byte(name, train, text) for name in config.baselines}

    record = {"split": config.split, "metric": metric, "baselines": beside, "context": data.max_length}
    record |= {"bytes": size, "tokens": tokens, "num_parameters": model.num_parameters()}
    write_result(Path(config.output), accelerator, record)
    covered = "its tokens do not give the text back: no bits_per_byte" if size is None else f"{size:,} bytes"
    accelerator.print(f"{config.split}: {covered} in {tokens:,} tokens, context {data.max_length} tokens")
    accelerator.print(f"{config.output}: " + ", ".join(f"{name} {value:.4f}" for name, value in metric.items()))
    for name, value in beside.items():
        accelerator.print(f"{name}: bits_per_byte {value:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
