"""Fine-tune a model to label words: named entities, slots, parts of speech; ours, BERT, RoBERTa, MiniLM, decoders ...

accelerate launch recipes/finetune_token_classification.py configs/finetune/ner_wikigold.yaml [key.sub=value ...]
"""

from decero.config.finetune_words import FinetuneTokenClassification
from decero.errors import run_script


def main():
    config = FinetuneTokenClassification.from_cli()
    from decero.tasks import TokenClassification, finish, is_finished  # after --help, which needs no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = TokenClassification(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
