"""Pretrain a model that draws pictures of a class from noise (DiT: Peebles & Xie 2022; Lipman et al. 2023).

accelerate launch recipes/pretrain_image_diffusion.py configs/pretrain/diffusion_fashion_mnist.yaml [key.sub=value ...]
"""

from decero.config.pretrain_images import PretrainImageDiffusion
from decero.errors import run_script


def main():
    config = PretrainImageDiffusion.from_cli()
    from decero.tasks import ImageDiffusion, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = ImageDiffusion(config)
        data = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
