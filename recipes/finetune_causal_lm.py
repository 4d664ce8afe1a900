"""Fine-tune a decoder on prompts and completions (ours, GPT-2, Llama); one with a chat template answers in its turn.

accelerate launch recipes/finetune_causal_lm.py configs/finetune/gpt_synopsis.yaml [key.sub=value ...] [--dry-run]
"""

from functools import partial
from pathlib import Path

from datasets import concatenate_datasets
from transformers import AutoModelForCausalLM

from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection
from decero.data.causal import strip_eos
from decero.data.completions import PromptCompletion, tokenize_prompts
from decero.errors import UserError, run
from decero.evaluation.text_metrics import text_signatures
from decero.execution.build import build_model, tokenizer_for
from decero.execution.objective import language_model
from decero.execution.optimize import optimize
from decero.hub.publish import push, save
from decero.planning.forecast import forecast
from decero.tasks.prompts import CompletionSection, prompt_style, prompts_of
from decero.tasks.text_to_text import (
    GenerationSection,
    TasksSection,
    answers,
    load_tasks,
    mix,
    score,
    tokenize_tasks,
    write_outputs,
)
from decero.training.evaluation import mean_loss
from decero.training.loop import train
from decero.training.runs import finished, main_first, start, write_result


class FinetuneCausalLM(RunConfig):
    options = (*RunConfig.options, "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: TasksSection
    objective: CompletionSection = CompletionSection()
    generation: GenerationSection = GenerationSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def main():
    config = FinetuneCausalLM.from_cli()
    accelerator = start(config, config.training)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['split']} {record['metric']}")
    output, data, generation = Path(config.output), config.data, config.generation
    size, longest = config.training.per_device_eval_batch_size, data.max_source_length + data.max_target_length

    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("eos_token",))
    strip_eos(tokenizer)
    style = prompt_style(config.objective, tokenizer)
    model = build_model(config.model, AutoModelForCausalLM, tokenizer, longest, config.seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # what completions are taught to end with
    with main_first(accelerator):  # one process writes the cache, the others read it
        texts = load_tasks(data, config.seed)
        rows = tokenize_tasks(texts, data, tokenizer, config.seed, partial(tokenize_prompts, **style))
    train_rows = mix(rows["train"], data.tasks, config.seed)
    if cut := sum(train_rows["truncated"]) / len(train_rows):
        accelerator.print(f"{cut:.1%} of the training pairs are longer than data.max_*_length and are cut")
    held_out = "test" if "test" in rows else "validation"
    if held_out not in rows:
        raise UserError("there is neither a test nor a validation split to score on; give a task test_fraction")

    objective = language_model(PromptCompletion(tokenizer), config.objective.label_smoothing)
    unsmoothed = language_model(PromptCompletion(tokenizer))
    validation = concatenate_datasets(list(rows["validation"].values())) if "validation" in rows else None
    looked = {name: part.select(range(min(generation.validation_rows, len(part))))
              for name, part in rows.get("validation", {}).items()}  # fmt: skip

    def generate(model, name, part, split, **settings):
        written = answers(accelerator, model, tokenizer, part, generation, **settings)
        return written, score(generation, written, texts[name][split]["target"][: len(part)])

    def evaluate(model, dataset=validation):  # of a part of the rows a part of the answers: a forecast asks for that
        metrics = {"loss": mean_loss(accelerator, model, dataset, unsmoothed, size)["loss"]}
        if generation.validation_rows:
            asked = {n: p.select(range(-(-len(p) * len(dataset) // len(validation or ())))) for n, p in looked.items()}
            scores = [generate(model, name, part, "validation")[1] for name, part in asked.items()]
            metrics |= {metric: sum(each[metric] for each in scores) / len(scores) for metric in scores[0]}
        return metrics

    objective = optimize(accelerator, model, objective, train_rows, longest, config.training)
    if config.dry_run:
        return forecast(config, accelerator, model, objective, train_rows, validation, evaluate if validation else None)
    result = train(
        accelerator, model, train_rows, objective, config.optim, config.training, output=output, seed=config.seed,
        evaluate=evaluate if validation else None, resume=config.resume,
    )  # fmt: skip

    hypotheses, metric = {}, {}  # type: ignore[var-annotated]
    for name, part in rows[held_out].items():
        how = {"num_beams": generation.num_beams, "progress": f"{name} {held_out}"}
        hypotheses[name], scores = generate(result.model, name, part, held_out, **how)
        scores["loss"] = mean_loss(accelerator, result.model, part, unsmoothed, size)["loss"]
        metric |= {f"{name}_{key}" if len(texts) > 1 else key: value for key, value in scores.items()}
    record = {"seed": config.seed, "train_examples": len(train_rows), "metric": metric, "split": held_out} | style
    record |= {"signatures": text_signatures(generation.metric), "tasks": list(texts)} | result.record()
    if accelerator.is_main_process:
        write_outputs(output, texts, held_out, hypotheses)
    bare = accelerator.unwrap_model(result.model)  # what was learnt here is what it does by default
    bare.generation_config.update(**generation.model_dump(include={"num_beams", "max_new_tokens", "length_penalty"}))
    bare.config.task_specific_params = prompts_of(style, data.tasks)
    save(accelerator, result.model, tokenizer, output / "model")
    write_result(output, accelerator, record)
    if config.hub.repo_id and accelerator.is_main_process:  # after the record, which goes along
        push(output / "model", config.hub.repo_id, config.hub.private)
    accelerator.print(f"{output}/model: {held_out} " + ", ".join(f"{key} {value:.4f}" for key, value in metric.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
