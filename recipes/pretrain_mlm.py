"""Pretrain an encoder with masked language modelling (BERT: Devlin et al. 2019; dynamic masks: Liu et al. 2019).

accelerate launch recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml [key.sub=value ...] [--dry-run]
"""

from pathlib import Path

import pandas as pd
from pydantic import Field
from transformers import AutoModelForMaskedLM

from decero.data.collators import MaskedLanguageModeling
from decero.data.corpus import load_corpus
from decero.data.rows import count_tokens, tokenize_documents
from decero.errors import run
from decero.hub.publish import push, save
from decero.training.config import (
    DataSection,
    ModelSection,
    OptimSection,
    RunConfig,
    Section,
    TokenizerSection,
    TrainingSection,
)
from decero.training.economy import economise
from decero.training.evaluate import mean_loss, predict_masked
from decero.training.loop import train
from decero.training.objectives import masked_lm
from decero.training.run import build_model, finished, forecast, main_first, start, tokenizer_for, write_result


class MaskedLMSection(Section):
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are scored")
    whole_word: bool = Field(True, description="mask words instead of tokens")


class PretrainMLM(RunConfig):
    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection
    objective: MaskedLMSection = MaskedLMSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def main():
    config = PretrainMLM.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']}")
    output, data, training = Path(config.output), config.data, config.training

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("mask_token", "pad_token"))
    model = build_model(config.model, AutoModelForMaskedLM, tokenizer, data.max_length, config.seed)
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus = load_corpus(**data.source())
        rows = {
            split: tokenize_documents(
                corpus[split], tokenizer, max_length=data.max_length, text_column=data.text_column,
                num_proc=data.num_proc, where=split,
            )
            for split in ("train", "validation")
            if split in corpus
        }  # fmt: skip
    if config.dry_run:
        return forecast(config, config.optim, training, model, len(rows["train"]), count_tokens(rows["train"]))

    settings = config.objective.model_dump() | {"seed": config.seed}
    objective = masked_lm(MaskedLanguageModeling(tokenizer, **settings))
    frozen = masked_lm(MaskedLanguageModeling(tokenizer, frozen=True, **settings))
    objective = economise(accelerator, model, objective, rows["train"], data.max_length, training)

    def evaluate(model):
        size = training.per_device_eval_batch_size
        return {"loss": mean_loss(accelerator, model, rows["validation"], frozen, size)["loss"]}

    result = train(
        accelerator, model, rows["train"], objective, config.optim, training, output=output, seed=config.seed,
        evaluate=evaluate if "validation" in rows else None, resume=config.resume,
    )  # fmt: skip
    metric = {}
    if "validation" in rows:
        table = predict_masked(
            accelerator, result.model, rows["validation"], frozen, training.per_device_eval_batch_size
        )
        metric = {"eval_loss": -float(table["log_probability"].mean())}
        metric["eval_accuracy"] = float((table["label"] == table["prediction"]).mean())
        if accelerator.is_main_process:
            pd.DataFrame(table).to_parquet(output / "predictions.parquet")
    save(accelerator, result.model, tokenizer, output / "model")
    write_result(output, accelerator, {"metric": metric, "seed": config.seed} | result.record())
    if config.hub.repo_id and accelerator.is_main_process:  # after the record, which goes along
        push(output / "model", config.hub.repo_id, config.hub.private)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in metric.items())
    accelerator.print(f"{output}/model: {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
