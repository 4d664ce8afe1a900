"""Measure how well a decoder predicts a text: loss, perplexity, bits a byte. Compare n-grams and compressors.

python recipes/evaluate_causal_lm.py configs/evaluate/gpt_en.yaml [key.sub=value ...] [--resume]
"""

from decero.config.pretraining import EvaluateCausalLM
from decero.errors import run_script


def main():
    config = EvaluateCausalLM.from_cli()
    from transformers import AutoModelForCausalLM  # after --help and mistakes, which need no libraries

    from decero.config.sections import TrainingSection
    from decero.execution.attention_kernels import choose_attention
    from decero.execution.build import build_model, tokenizer_for
    from decero.execution.token_scores import check_causal
    from decero.tasks.likelihood import baselines, bigram_slices, rows_facts, scored_rows, text_likelihood
    from decero.training.records import finished, write_result
    from decero.training.runs import start

    opened = start(config, TrainingSection(max_train_steps=1, mixed_precision=config.mixed_precision))
    accelerator, data = opened.accelerator, config.data
    if record := finished(config):
        return opened.print(f"{config.output} is finished: {record['metric']}")
    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("eos_token",))
    model = build_model(config.model, AutoModelForCausalLM, tokenizer, data.max_length, config.seed, new_head=False)
    check_causal(model, f"model: {config.model.config or config.model.name_or_path}")
    corpus, rows = scored_rows(opened, tokenizer)
    opened.print(
        choose_attention(
            model, accelerator.device, opened.training.mixed_precision, requested=config.model.attn_implementation
        )
    )
    model = accelerator.prepare_model(model, evaluation_mode=True)  # computes as it does in a run
    metric = text_likelihood(accelerator, model, rows, tokenizer, config.per_device_eval_batch_size)
    if config.bigram_slices:
        metric |= bigram_slices(accelerator, model, rows, tokenizer, config.per_device_eval_batch_size, metric)
    facts = rows_facts(rows)
    beside = baselines(config, corpus)

    record = {"split": config.split, "metric": metric, "baselines": beside, "context": data.max_length}
    write_result(opened.output, accelerator, record | facts | {"num_parameters": model.num_parameters()})
    size, tokens = facts["bytes"], facts["tokens"]
    covered = "its tokens do not give the text back: no bits_per_byte" if size is None else f"{size:,} bytes"
    opened.print(f"{config.split}: {covered} in {tokens:,} tokens, context {data.max_length} tokens")
    opened.print(f"{config.output}: " + ", ".join(f"{name} {value:.4f}" for name, value in metric.items()))
    opened.print(*(f"{name}: bits_per_byte {value:.4f}" for name, value in beside.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
