"""Probe a masked or causal model for bias: how often it prefers a stereotype to its opposite, beside two controls.

accelerate launch recipes/probe_bias.py configs/evaluate/bias_en.yaml [key.sub=value ...] [--resume]
"""

from decero.config.bias import ProbeBias
from decero.errors import run_script


def main():
    config = ProbeBias.from_cli()
    from decero.config.sections import TrainingSection  # after --help and mistakes, which need no libraries
    from decero.data.special_tokens import pad_with
    from decero.evaluation.bias_scores import bias_table
    from decero.execution.attention_kernels import choose_attention
    from decero.execution.build import build_model, tokenizer_for
    from decero.execution.positions import positions_of
    from decero.tasks import bias_probes as probing
    from decero.tasks.bias_records import LIMITS, entries, noise_floors, table_of, write_report
    from decero.tasks.pseudo_likelihood import language_head, read_unigram
    from decero.tasks.random_control import check_control, random_models
    from decero.training.records import finished, write_result
    from decero.training.runs import on_main, start

    run = start(config, TrainingSection(max_train_steps=1, mixed_precision=config.mixed_precision))
    accelerator, size = run.accelerator, config.per_device_eval_batch_size
    if record := finished(config):
        return run.print(f"{config.output} is finished", *bias_table(record["categories"]))
    head = language_head(config.model, masked=config.objective is not None)
    check_control(config.control, config.model, head)
    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=())
    asking = probing.Asking.of(config, head, tokenizer)
    probes, unigram = probing.read_sets(run, config), read_unigram(run, config.unigram)
    model = build_model(config.model, head, tokenizer, 1, config.seed, new_head=False)
    pad_with(tokenizer, model.config.pad_token_id)
    limit, size_of_model = positions_of(model), model.num_parameters()
    sets = [probing.tokenize(asking, name, config.sets[name].format, each, limit) for name, each in probes.items()]
    names = probing.name_sets(asking, sets, config.names, limit)
    longest = probing.longest(asking, [*sets, *names.values()])
    kernel = config.model.attn_implementation
    run.print(choose_attention(model, accelerator.device, run.training.mixed_precision, requested=kernel))
    randoms = [  # the controls first: a bias that they have, too, is none of the model
        probing.measure(accelerator, control, asking, sets, size)
        for control in random_models(run, config, head, tokenizer, longest)
    ]
    model = accelerator.prepare_model(model, evaluation_mode=True)  # computes as it does in a run
    found = probing.measure(accelerator, model, asking, [*sets, *names.values()], size)
    categories = entries(sets, asking, found, randoms, unigram, noise_floors(names, found))
    on_main(accelerator, lambda: write_report(run.output, categories, config, table_of(sets, found)))
    facts = {"weights": probing.fingerprints(config.model), "num_parameters": size_of_model, "limits": LIMITS}
    write_result(run.output, accelerator, facts | {"split": config.split, "categories": categories, "metric": {}})
    run.print("", *bias_table(categories), "", *LIMITS)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
