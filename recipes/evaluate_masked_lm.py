"""Measure how well a masked model foresees a text: pseudo-perplexity; with sentence_l2r, bits a byte.

accelerate launch recipes/evaluate_masked_lm.py configs/evaluate/mlm_en.yaml [key.sub=value ...] [--resume]
"""

from decero.config.language_scores import EvaluateMaskedLM
from decero.errors import run_script


def main():
    config = EvaluateMaskedLM.from_cli()
    from transformers import AutoModelForMaskedLM  # after --help and mistakes, which need no libraries

    from decero.config.sections import TrainingSection
    from decero.data.likelihood_rows import MaskedRows
    from decero.execution.attention_kernels import choose_attention
    from decero.execution.build import build_model, tokenizer_for
    from decero.tasks.pseudo_likelihood import masked_text_likelihood, read_texts
    from decero.training.records import finished, write_result
    from decero.training.runs import start

    run = start(config, TrainingSection(max_train_steps=1, mixed_precision=config.mixed_precision))
    accelerator, length = run.accelerator, config.data.max_length
    if record := finished(config):
        return run.print(f"{config.output} is finished: {record['metric']}")
    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("mask_token", "pad_token"))
    model = build_model(config.model, AutoModelForMaskedLM, tokenizer, length, config.seed, new_head=False)
    texts, rows = read_texts(run, config), MaskedRows(tokenizer, config.objective.name)
    kernel = config.model.attn_implementation
    run.print(choose_attention(model, accelerator.device, run.training.mixed_precision, requested=kernel))
    model = accelerator.prepare_model(model, evaluation_mode=True)  # computes as it does in a run
    size = config.per_device_eval_batch_size
    metric, facts = masked_text_likelihood(accelerator, model, rows, texts, length, size, config.split)
    record = {"split": config.split, "metric": metric, "method": rows.method, "context": length}
    write_result(run.output, accelerator, record | facts | {"num_parameters": model.num_parameters()})
    run.print(f"{config.split}: {facts['tokens']:,} tokens in {len(texts):,} texts, rows of {length} tokens")
    run.print(f"{config.output}: " + ", ".join(f"{name} {value:.4f}" for name, value in metric.items()))
    if rows.kind != "log_likelihood":
        run.print("pseudo figures do not compare with causal models: set objective.name=sentence_l2r for that")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
