"""Fine-tune a model to choose among texts: an encoder with a head, or a decoder by likelihood, also zero-shot.

accelerate launch recipes/finetune_multiple_choice.py configs/finetune/bbq_smollm2.yaml [key.sub=value ...]
"""

from decero.config.finetune_choice import FinetuneMultipleChoice
from decero.errors import run_script


def main():
    config = FinetuneMultipleChoice.from_cli()
    from decero.tasks import MultipleChoice, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = MultipleChoice(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
