"""Pretrain a model of images without labels by predicting hidden patches (SimMIM: Xie et al. 2022).

accelerate launch recipes/pretrain_masked_image.py configs/pretrain/masked_image_fashion_mnist.yaml [key.sub=value ...]
"""

from decero.config.pretrain_images import PretrainMaskedImage
from decero.errors import run_script


def main():
    config = PretrainMaskedImage.from_cli()
    from decero.tasks import MaskedImage, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = MaskedImage(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
