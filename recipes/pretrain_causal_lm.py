"""Pretrain a decoder with causal language modelling (Radford et al. 2018, 2019).

accelerate launch recipes/pretrain_causal_lm.py configs/pretrain/gpt_en.yaml [key.sub=value ...]
    [--dry-run [--device h100]] [--budget 30m] [--resume]
"""

from pathlib import Path

from transformers import AutoModelForCausalLM

from decero.data.causal import OBJECTIVES, count_bytes, let_go_on, tokenize_text
from decero.data.corpus import open_corpus
from decero.errors import run
from decero.hub.publish import push, save
from decero.training.budget import within_budget
from decero.training.build import build_model, tokenizer_for
from decero.training.config import (  # fmt: skip
    ModelSection,
    OptimSection,
    TokenizerSection,
    TrainingSection,
)
from decero.training.economy import economise
from decero.training.forecast import forecast
from decero.training.generation_check import warn_of_generation
from decero.training.likelihood import text_likelihood
from decero.training.loop import train
from decero.training.objectives import language_model
from decero.training.run import finished, main_first, start, write_result
from decero.training.sections import CausalSection, Pretraining, TextSection


class PretrainCausalLM(Pretraining):
    options = (*Pretraining.options, "--budget", "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: TextSection
    objective: CausalSection = CausalSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def main():
    config = PretrainCausalLM.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']}")
    output, data, size = Path(config.output), config.data, config.training.per_device_eval_batch_size

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("eos_token",))
    let_go_on(tokenizer)

    def build(section):
        return build_model(section, AutoModelForCausalLM, tokenizer, data.max_length, config.seed)

    model = build(config.model)
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus = open_corpus(**data.source())
        rows = {
            split: tokenize_text(
                corpus[split], tokenizer, max_length=data.max_length, text_column=data.text_column,
                start_token=data.start_token, num_proc=data.num_proc, where=split,
            )
            for split in ("train", "validation")
            if split in corpus
        }  # fmt: skip

    objective = language_model(OBJECTIVES[config.objective.name](tokenizer, seed=config.seed))
    held_out = rows.get("validation")

    def evaluate(model, dataset=held_out):
        return text_likelihood(accelerator, model, dataset, tokenizer, size)

    if config.call.budget:  # up to four passes are worth almost what new text is (Muennighoff et al. 2023, section 5)
        config = within_budget(config, accelerator, build, objective, rows["train"], held_out, evaluate, most_epochs=4)
        model = build(config.model)
    objective = economise(accelerator, model, objective, rows["train"], data.max_length, config.training)
    if config.dry_run:
        return forecast(config, accelerator, model, objective, rows["train"], held_out, evaluate, evaluate)

    result = train(
        accelerator, model, rows["train"], objective, config.optim, config.training, output=output,
        seed=config.seed, evaluate=evaluate if held_out else None, resume=config.resume,
    )  # fmt: skip
    metric = evaluate(result.model) if held_out else {}
    warn_of_generation(accelerator, result.model)
    save(accelerator, result.model, tokenizer, output / "model")
    record = {"metric": metric, "seed": config.seed, "context": data.max_length}
    record |= {"bytes": count_bytes(held_out)} if held_out else {}
    write_result(output, accelerator, record | result.record())
    if config.hub.repo_id and accelerator.is_main_process:  # after the record, which goes along
        push(output / "model", config.hub.repo_id, config.hub.private)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in metric.items())
    accelerator.print(f"{output}/model: {figures} (context {data.max_length} tokens)")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
