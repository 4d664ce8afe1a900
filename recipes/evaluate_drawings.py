"""Measure a model that draws pictures: accuracy of a classifier, distance to real pictures, copies, balance.

python recipes/evaluate_drawings.py configs/evaluate/drawings_fashion_mnist.yaml [key.sub=value ...] [--resume]
"""

from decero.config.drawings import EvaluateDrawings
from decero.errors import UserError, run_script


def main():
    config = EvaluateDrawings.from_cli()
    from decero.inference.drawing import load_drawing  # after --help and mistakes, which need no libraries
    from decero.inference.image_answers import load_pictures
    from decero.tasks import drawn_pictures as measuring
    from decero.training.records import finished, write_result
    from decero.training.runs import start

    run = start(config)
    if run.accelerator.num_processes > 1:
        raise UserError("evaluate_drawings: one process draws; start it without a launcher")
    if record := finished(config):
        return run.print(f"{config.output} is finished: {record['metric']}")
    loaded, judge = load_drawing(config.model), load_pictures(config.classifier, "classify")
    measuring.order_of(judge, loaded.classes, config.classifier)  # before the pictures are read
    real = measuring.read_real(run, config, loaded)
    record = measuring.measure(run, config, loaded, judge, real)
    write_result(run.output, run.accelerator, record | {"num_parameters": loaded.model.num_parameters()})
    right = 100 * record["classifier_accuracy_on_test"]
    run.print("", *measuring.table(record), "", f"on real test pictures the classifier is right in {right:.1f}%")
    run.print(f"{config.output}: see samples.png, and nearest.png for training pictures beside drawn ones")
    run.accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
