"""Fine-tune an encoder to choose the sentences of a summary: ours, BERT, RoBERTa, MiniLM ... (Liu & Lapata 2019).

accelerate launch recipes/finetune_extractive_summaries.py configs/finetune/extractive_synopsis.yaml [key.sub=value ...]
"""

from decero.config.finetune_summaries import FinetuneExtractiveSummaries
from decero.errors import run_script


def main():
    config = FinetuneExtractiveSummaries.from_cli()
    from decero.tasks import (  # after --help and mistakes, which need no libraries
        ExtractiveSummaries,
        finish,
        is_finished,
    )
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = ExtractiveSummaries(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
