"""Pretrain an encoder with masked language modelling (BERT: Devlin et al. 2019; dynamic masks: Liu et al. 2019).

accelerate launch recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml [key.sub=value ...]
    [--dry-run [--device h100]] [--budget 30m] [--resume]
"""

from pathlib import Path

from transformers import AutoModelForMaskedLM

from decero.config.pretraining import MaskedLMSection, Pretraining, UnlabelledData
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection
from decero.data.collators import MaskedLanguageModeling
from decero.data.corpus import open_corpus
from decero.data.tokenization import tokenize_documents
from decero.errors import run
from decero.execution.build import build_model, tokenizer_for
from decero.execution.objective import masked_lm
from decero.execution.optimize import optimize
from decero.hub.publish import push, save
from decero.planning.budget import within_budget
from decero.planning.forecast import forecast
from decero.training.evaluation import judge_tokens, mean_loss, predict_masked
from decero.training.loop import train
from decero.training.runs import finished, main_first, start, write_result


class PretrainMLM(Pretraining):
    options = (*Pretraining.options, "--budget", "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: UnlabelledData
    objective: MaskedLMSection = MaskedLMSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def main():
    config = PretrainMLM.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']}")
    output, data, size = Path(config.output), config.data, config.training.per_device_eval_batch_size

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("mask_token", "pad_token"))

    def build(section):
        return build_model(section, AutoModelForMaskedLM, tokenizer, data.max_length, config.seed)

    model = build(config.model)
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus = open_corpus(**data.source())
        rows = {
            split: tokenize_documents(
                corpus[split], tokenizer, max_length=data.max_length, text_column=data.text_column,
                num_proc=data.num_proc, where=split,
            )
            for split in ("train", "validation")
            if split in corpus
        }  # fmt: skip

    settings = config.objective.model_dump(exclude={"scored_queries"}) | {"seed": config.seed}
    told = config.objective.scored_queries and not config.training.compile  # a compiler wants one shape
    objective = masked_lm(MaskedLanguageModeling(tokenizer, **settings), told)
    frozen = masked_lm(MaskedLanguageModeling(tokenizer, frozen=True, **settings))
    held_out = rows.get("validation")

    def evaluate(model, dataset=held_out):
        return {"loss": mean_loss(accelerator, model, dataset, frozen, size)["loss"]}

    def judge(model, dataset=held_out):
        return predict_masked(accelerator, model, dataset, frozen, size)

    if config.call.budget:  # BERT read its text 40 times (Devlin et al. 2019, appendix A.2)
        config = within_budget(config, accelerator, build, objective, rows["train"], held_out, evaluate, most_epochs=40)
        model = build(config.model)
    objective = optimize(accelerator, model, objective, rows["train"], data.max_length, config.training)
    if config.dry_run:
        return forecast(config, accelerator, model, objective, rows["train"], held_out, evaluate, judge)

    result = train(
        accelerator, model, rows["train"], objective, config.optim, config.training, output=output,
        seed=config.seed, evaluate=evaluate if held_out else None, resume=config.resume,
    )  # fmt: skip
    metric = judge_tokens(accelerator, result.model, held_out, frozen, size, output) if held_out else {}
    save(accelerator, result.model, tokenizer, output / "model")
    write_result(output, accelerator, {"metric": metric, "seed": config.seed} | result.record())
    if config.hub.repo_id and accelerator.is_main_process:  # after the record, which goes along
        push(output / "model", config.hub.repo_id, config.hub.private)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in metric.items())
    accelerator.print(f"{output}/model: {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
