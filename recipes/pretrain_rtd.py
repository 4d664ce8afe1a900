"""Pretrain an encoder with replaced token detection (ELECTRA: Clark et al. 2020).

accelerate launch recipes/pretrain_rtd.py configs/pretrain/rtd_text_en.yaml [key.sub=value ...]
    [--dry-run [--device h100]] [--budget 30m] [--resume]
"""

from decero.config.pretraining import PretrainRTD
from decero.errors import run_script


def main():
    config = PretrainRTD.from_cli()
    from decero.tasks import ReplacedTokenDetection, finish, is_finished  # after --help and mistakes, which need none
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = ReplacedTokenDetection(config)
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
