"""Fine-tune an encoder or decoder to find answers in texts: ours, BERT, RoBERTa, MiniLM ... (SQuAD 1 and 2).

accelerate launch recipes/finetune_question_answering.py configs/finetune/qa_reading_spans.yaml [key.sub=value ...]
"""

from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.errors import run_script


def main():
    config = FinetuneQuestionAnswering.from_cli()
    from decero.tasks import QuestionAnswering, finish, is_finished  # after --help and mistakes
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = QuestionAnswering(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
