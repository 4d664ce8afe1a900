"""Pretrain an encoder-decoder: span corruption (T5: Raffel et al. 2020), infilling (BART: Lewis et al. 2020), prefix.

accelerate launch recipes/pretrain_seq2seq.py configs/pretrain/seq2seq_en_es.yaml [key.sub=value ...]
    [--dry-run [--device h100]] [--budget 30m] [--resume]
"""

from pathlib import Path

from transformers import AutoModelForSeq2SeqLM

from decero.config.pretraining import DenoisingSection, Pretraining, UnlabelledData
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection
from decero.data.corpus import open_corpus
from decero.data.corruption import OBJECTIVES
from decero.data.pairs import ShuffledSources
from decero.data.tokenization import tokenize_documents
from decero.errors import run
from decero.execution.build import build_model, tokenizer_for
from decero.execution.objective import language_model
from decero.execution.optimize import optimize
from decero.hub.publish import push, save
from decero.planning.budget import within_budget
from decero.planning.forecast import forecast
from decero.training.evaluation import judge_tokens, mean_loss, predict_masked
from decero.training.loop import train
from decero.training.runs import finished, main_first, start, write_result


class PretrainSeq2Seq(Pretraining):
    options = (*Pretraining.options, "--budget", "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: UnlabelledData
    objective: DenoisingSection = DenoisingSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def main():
    config = PretrainSeq2Seq.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']}")
    output, data, size = Path(config.output), config.data, config.training.per_device_eval_batch_size

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("eos_token", "pad_token"))

    def build(section):
        return build_model(section, AutoModelForSeq2SeqLM, tokenizer, data.max_length, config.seed)

    model = build(config.model)
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus = open_corpus(**data.source())
        rows = {
            split: tokenize_documents(
                corpus[split], tokenizer, max_length=data.max_length - 1, text_column=data.text_column,
                special_tokens=False, num_proc=data.num_proc, where=split,
            )
            for split in ("train", "validation")
            if split in corpus
        }  # fmt: skip

    settings = config.objective.model_dump(exclude={"name"}, exclude_none=True)
    settings |= {"max_length": data.max_length - 1, "seed": config.seed}
    damage, start_id = OBJECTIVES[config.objective.name], model.config.decoder_start_token_id
    objective = language_model(damage(tokenizer, start_id, **settings))
    pairs = damage(tokenizer, start_id, frozen=True, **settings)
    frozen, held_out = language_model(pairs), rows.get("validation")

    def evaluate(model, dataset=held_out):
        both = frozen, language_model(ShuffledSources(pairs, dataset))
        loss, other = (mean_loss(accelerator, model, dataset, each, size)["loss"] for each in both)
        return {"loss": loss, "source_gain": other - loss}  # nats a token that what is read is worth

    def judge(model, dataset=held_out):
        return predict_masked(accelerator, model, dataset, frozen, size)

    if config.call.budget:  # T5 read its text once; a small corpus bears a few passes (Muennighoff et al. 2023)
        config = within_budget(config, accelerator, build, objective, rows["train"], held_out, evaluate, most_epochs=16)
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
    accelerator.print(f"{output}/model: " + ", ".join(f"{name} {value:.4f}" for name, value in metric.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
