"""Pretrain an encoder-decoder: span corruption (T5: Raffel et al. 2020), infilling (BART: Lewis et al. 2020), prefix.

accelerate launch recipes/pretrain_seq2seq.py configs/pretrain/seq2seq_en_es.yaml [key.sub=value ...]
    [--dry-run [--device h100]] [--budget 30m] [--resume]
"""

from decero.config.pretraining import PretrainSeq2Seq
from decero.errors import run_script


def main():
    config = PretrainSeq2Seq.from_cli()
    from decero.tasks import Denoising, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = Denoising(config)
        model = task.build_model()
        data = task.load_data(run)
        if config.call.budget:
            run = task.within_budget(run, model, data)
            model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
