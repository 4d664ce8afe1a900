"""Fine-tune an encoder-decoder on pairs of texts: to translate, to summarise, anything (ours, T5, BART, Marian).

accelerate launch recipes/finetune_seq2seq.py configs/finetune/translate_en_es.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.finetuning import FinetuneSeq2Seq
from decero.errors import run_script


def main():
    config = FinetuneSeq2Seq.from_cli()
    from decero.tasks import Seq2Seq, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = Seq2Seq(config)
        model = task.build_model()
        data = task.load_data(run)
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
