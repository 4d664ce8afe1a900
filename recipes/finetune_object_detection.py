"""Train a model to find objects in pictures, from random weights or from a checkpoint: ours, DETR ...

accelerate launch recipes/finetune_object_detection.py configs/finetune/scenes_detr.yaml [key.sub=value ...]
"""

from decero.config.finetune_images import FinetuneObjectDetection
from decero.errors import run_script


def main():
    config = FinetuneObjectDetection.from_cli()
    from decero.tasks import (
        ObjectDetection,
        finish,
        is_finished,
    )  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = ObjectDetection(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
