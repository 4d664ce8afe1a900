"""Fine-tune an encoder to classify (one label or several) or to regress: ours, BERT, RoBERTa, XLNet, MiniLM ...

accelerate launch recipes/finetune_classification.py configs/finetune/bbc_minilm.yaml [key.sub=value ...] [--dry-run]
"""

from pathlib import Path

from decero.errors import run
from decero.hub.publish import push, save
from decero.tasks.classification import FinetuneClassification, finetune
from decero.training.runs import finished, start, write_result


def main():
    config = FinetuneClassification.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['split']} {record['metric']}")

    # Labels, tokens, model, training and the one look at the test set: the path that compare.py takes as well.
    tuned = finetune(config, accelerator)
    if tuned is None:
        return None
    record, result, tokenizer = tuned
    output = Path(config.output)
    save(accelerator, result.model, tokenizer, output / "model")
    write_result(output, accelerator, record)
    if config.hub.repo_id and accelerator.is_main_process:  # after the record, which goes along
        push(output / "model", config.hub.repo_id, config.hub.private)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record["metric"].items())
    accelerator.print(f"{output}/model: {record['split']} {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
