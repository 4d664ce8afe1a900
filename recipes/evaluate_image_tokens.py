"""Measure a causal model of image tokens: bits a pixel, the use of captions, pictures with their lower half drawn anew.

python recipes/evaluate_image_tokens.py configs/evaluate/image_tokens_fashion_mnist.yaml [key.sub=value ...] [--resume]
"""

from decero.config.image_token_runs import EvaluateImageTokens
from decero.errors import UserError, run_script


def main():
    config = EvaluateImageTokens.from_cli()
    from decero.inference.drawing import load_drawing  # after --help and mistakes, which need no libraries
    from decero.tasks import foreseen_pictures as measuring
    from decero.training.records import finished, write_result
    from decero.training.runs import start

    run = start(config)
    if run.accelerator.num_processes > 1:
        raise UserError("evaluate_image_tokens: one process measures; start it without a launcher")
    if record := finished(config):
        return run.print(f"{config.output} is finished: {record['metric']}")
    loaded = measuring.of_tokens(load_drawing(config.model))
    train, test = measuring.read_rows(run, config, loaded.tokens)
    record = measuring.measure(run, config, loaded, train, test)
    write_result(run.output, run.accelerator, record | {"num_parameters": loaded.model.num_parameters()})
    run.print("", *measuring.lines_of(record))
    run.print(f"{config.output}: see completed.png for lower halves drawn anew, captions.png for whole pictures")
    run.accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
