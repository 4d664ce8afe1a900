"""Fine-tune a decoder on prompts and completions (ours, GPT-2, Llama); one with a chat template answers in its turn.

accelerate launch recipes/finetune_causal_lm.py configs/finetune/gpt_synopsis.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.finetuning import FinetuneCausalLM
from decero.errors import run_script


def main():
    config = FinetuneCausalLM.from_cli()
    from decero.tasks import Completion, finish, is_finished  # after --help and mistakes, which need no libraries
    from decero.training.loop import train
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        task = Completion(config)
        model = task.build_model()
        data = task.load_data(run)
        objective = task.optimize(run, model, data)
        if config.dry_run:
            return task.forecast(run, model, objective, data)
        result = train(run, model, data.train, objective, task.evaluator(run, data))
        finish(run, task, result, data)


if __name__ == "__main__":
    run_script(main)
