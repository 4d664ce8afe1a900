"""Three runs that test_memory.py launches on two processes; in the last two, one process runs out of memory.

Arguments: TOKENIZER ROWS OUTPUT, three folders. Writes the final weights of a run to OUTPUT/NAME.safetensors.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_from_disk
from safetensors.torch import save_model
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast, set_seed

from decero.config.sections import OptimSection, TrainingSection
from decero.data.collators import MaskedLanguageModeling
from decero.errors import run_script
from decero.execution.objective import masked_lm
from decero.models import DeceroEncoderConfig
from decero.training.loop import train
from decero.training.runs import Run


def main():
    tokenizer, rows, output = sys.argv[1:]
    objective = masked_lm(MaskedLanguageModeling(PreTrainedTokenizerFast.from_pretrained(tokenizer), seed=1))
    for name, memory in {"enough": 99, "short": 2, "none": 0}.items():
        set_seed(0)
        sizes = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1}
        model = AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**sizes, intermediate_size=37))
        accelerator = Accelerator(cpu=True)
        calls = []

        def refuse(model, args, kwargs, memory=memory, calls=calls, rank=accelerator.process_index):
            calls.append(len(kwargs["input_ids"]))
            if rank == 1 and calls[-1] > memory and len(calls) > 2:  # one row is tried twice before the first step
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.register_forward_pre_hook(refuse, with_kwargs=True)
        training = TrainingSection(max_train_steps=4, global_batch_size=12, per_device_batch_size=5, logging_steps=1)
        optim = OptimSection(name="sgd", learning_rate=0.5)
        run = Run(accelerator, training, optim, Path(output) / name, seed=4, progress=False)
        result = train(run, model, load_from_disk(rows), objective)
        if accelerator.is_main_process:
            save_model(accelerator.unwrap_model(result.model), f"{output}/{name}.safetensors")


if __name__ == "__main__":
    run_script(main)
