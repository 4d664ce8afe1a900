"""Measure grammar with minimal pairs: how often a masked or causal model prefers the acceptable text.

accelerate launch recipes/evaluate_minimal_pairs.py configs/evaluate/blimp_en.yaml [key.sub=value ...] [--resume]
"""

from decero.config.language_scores import EvaluateMinimalPairs
from decero.errors import run_script


def main():
    config = EvaluateMinimalPairs.from_cli()
    from decero.config.sections import TrainingSection  # after --help and mistakes, which need no libraries
    from decero.data.special_tokens import pad_with
    from decero.evaluation.pair_accuracy import accuracy_by, pair_table
    from decero.execution.attention_kernels import choose_attention
    from decero.execution.build import build_model, tokenizer_for
    from decero.execution.positions import positions_of
    from decero.tasks import pseudo_likelihood as measuring
    from decero.tasks.random_control import check_control, random_models
    from decero.training.records import finished, write_result
    from decero.training.runs import on_main, start

    run = start(config, TrainingSection(max_train_steps=1, mixed_precision=config.mixed_precision))
    accelerator = run.accelerator
    if record := finished(config):
        return run.print(f"{config.output} is finished: {record['metric']}")
    head = measuring.language_head(config.model, masked=config.objective is not None)
    table = measuring.read_pairs(run, config)
    if config.control:
        check_control(config.control, config.model, head)
    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=())
    rows = measuring.pair_rows(config, head, tokenizer)
    model = build_model(config.model, head, tokenizer, 1, config.seed, new_head=False)
    pad_with(tokenizer, model.config.pad_token_id)
    unigram = None if config.unigram is None else measuring.read_unigram(run, config.unigram)
    kernel = config.model.attn_implementation
    run.print(choose_attention(model, accelerator.device, run.training.mixed_precision, requested=kernel))
    limit, size = positions_of(model), config.per_device_eval_batch_size
    model = accelerator.prepare_model(model, evaluation_mode=True)  # computes as it does in a run
    table = measuring.score_pairs(accelerator, model, rows, table, limit, size, config.split)
    controls = [
        measuring.score_pairs(accelerator, control, rows, table, positions_of(control), size, config.split)
        for control in (random_models(run, config, head, tokenizer) if config.control else ())
    ]
    systems = measuring.pair_systems(table, unigram, controls)
    contrasts = measuring.pair_contrasts(table)
    groups = {name: accuracy_by(table[name].tolist(), systems, contrasts) for name in ("phenomenon", "paradigm")}
    whole = accuracy_by(["all pairs"] * len(table), systems, contrasts)["all pairs"]
    on_main(accelerator, lambda: table.to_parquet(run.output / "predictions.parquet", index=False))
    metric = {name: whole[name][0] for name in ("accuracy", "accuracy_per_token")}
    record = {"split": config.split, "metric": metric, "kind": rows.kind, "whole": whole}
    record |= {"phenomena": groups["phenomenon"], "paradigms": groups["paradigm"]}
    write_result(run.output, accelerator, record | {"num_parameters": model.num_parameters()})
    run.print("", *pair_table(groups["phenomenon"], whole), "", f"{config.output}: scores are {rows.kind}")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
