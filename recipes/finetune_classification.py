"""Fine-tune an encoder to classify (one label or several) or to regress: ours, BERT, RoBERTa, XLNet, MiniLM ...

accelerate launch recipes/finetune_classification.py configs/finetune/bbc_minilm.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.finetuning import FinetuneClassification
from decero.errors import run_script


def main():
    config = FinetuneClassification.from_cli()
    from decero.tasks import Classification, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = Classification(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
