"""Train cases on one or several processes for test_sharding.py. Results must not depend on the number of processes.

`main` takes CASES TOKENIZER FOLDER. CASES is a JSON list of settings, one run each. Writes the final weights to
FOLDER/NAME/end.safetensors and the results to FOLDER/NAME/results.json. A case: name, kind, sharded, resume,
dropout, of (the run's folder), training, optim.
"""

import json
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from decero.config.finetuning import GenerationSection
from decero.config.sections import ModelSection, OptimSection, TrainingSection
from decero.config.training_run import PeftSection
from decero.data.collators import ClassificationCollator, MaskedLanguageModeling
from decero.data.pairs import PairCollator
from decero.data.tokenization import tokenize_documents
from decero.execution.adapters import add_adapter
from decero.execution.objective import classification, language_model, masked_lm
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig
from decero.tasks.text_to_text import answers
from decero.training.evaluation import mean_loss
from decero.training.loop import train
from decero.training.runs import Run

SIZES = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1}
LINE = "the market rose fell sharply on monday as banks and shares in london gained after profit news"
WORDS = LINE.split(" ")


def texts(count: int) -> list[str]:
    """Make the texts of tests/conftest.py: a pure function."""
    return [
        " ".join(WORDS[(n * 7 + i * i * (n % 5 + 1)) % len(WORDS)] for i in range(5 + n * 3 % 23)) for n in range(count)
    ]


class NextToken:
    """Make causal batches: each token predicts the next."""

    def __init__(self, tokenizer):
        self.pair = PairCollator(tokenizer, 0)

    def __call__(self, rows):
        batch = self.pair([{"input_ids": row["input_ids"][:-1], "labels": row["input_ids"][1:]} for row in rows])
        batch.pop("decoder_input_ids")
        return batch


def task(kind: str, tokenizer, dropout: float):
    """Return model and objective of a kind: three decero models, and stock BERT with two heads."""
    ours = SIZES | {"intermediate_size": 37, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    masks = MaskedLanguageModeling(tokenizer, seed=1)
    if kind == "mlm":
        return AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**ours)), masked_lm(masks)
    if kind == "causal":
        return AutoModelForCausalLM.from_config(DeceroDecoderConfig(**ours)), language_model(NextToken(tokenizer))
    if kind == "seq2seq":
        ends = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": tokenizer.pad_token_id}
        model = AutoModelForSeq2SeqLM.from_config(DeceroEncoderDecoderConfig(**ours, **ends))
        return model, language_model(PairCollator(tokenizer, 2))
    if kind == "adapter":
        model = AutoModelForSequenceClassification.from_config(DeceroEncoderConfig(**ours, num_labels=3))
        source = ModelSection(name_or_path="some/base")
        model = add_adapter(model, PeftSection(r=3), source, AutoModelForSequenceClassification, seed=0)
        return model, classification(ClassificationCollator(tokenizer), "single_label_classification")
    bert = BertConfig(**ours, max_position_embeddings=61, num_labels=3)
    if kind == "bert":
        return BertForMaskedLM(bert), masked_lm(masks)
    single = "single_label_classification"
    return BertForSequenceClassification(bert), classification(ClassificationCollator(tokenizer), single)


def study(cases: list[dict], tokenizer_folder: str, folder: str, accelerator: Accelerator) -> None:
    """Run each case; the main process writes final weights and results."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    rows = tokenize_documents(Dataset.from_dict({"text": texts(61)}), tokenizer, max_length=48)
    for case in cases:
        kind, output = case["kind"], Path(folder) / case.get("of", case["name"])
        labels = [row[::-1] if kind == "seq2seq" else len(row) % 3 for row in rows["input_ids"]]
        data = rows if kind in ("mlm", "bert", "causal") else rows.add_column("labels", labels)
        set_seed(0)
        model, objective = task(kind, tokenizer, case.get("dropout", 0.0))
        settings = {"max_train_steps": 6, "global_batch_size": 12, "per_device_batch_size": 2, "logging_steps": 1}
        held_out, generation = data.select(range(7)), GenerationSection(max_new_tokens=9)
        write = kind == "seq2seq"

        def evaluate(model, data=held_out, objective=objective, generation=generation, write=write):
            found = mean_loss(accelerator, model, data, objective, 1)  # 4 batches on one process, 3 on the other
            if write:
                found["letters"] = sum(map(len, answers(accelerator, model, tokenizer, data, generation)))
            return found

        run = Run(
            accelerator,
            TrainingSection(**(settings | {"eval_strategy": "steps", "eval_steps": 3} | case.get("training", {}))),
            OptimSection(**({"learning_rate": 1e-2} | case.get("optim", {}))), output, seed=4,
            resume=case.get("resume", False), sharded=case.get("sharded", False), progress=False,
        )  # fmt: skip
        result = train(run, model, data, objective, evaluate)
        results = {"loss": [row["loss"] for row in result.history if "loss" in row]}
        results |= {"grad_norm": [row["grad_norm"] for row in result.history if "loss" in row]}
        results |= {"evaluated": [row for row in result.history if "eval_loss" in row], "best": result.best}
        results |= {
            "record": result.record() | {"wall_time_s": 0, "save_time_s": 0},
            "class": type(result.model).__name__,
        }
        if write:
            results["written"] = answers(accelerator, result.model, tokenizer, held_out, generation)
        if accelerator.is_main_process:
            end = Path(folder) / case["name"]
            end.mkdir(exist_ok=True)
            weights = {name: p.detach().clone() for name, p in result.model.named_parameters()}
            save_file(weights, end / "end.safetensors")
            (end / "results.json").write_text(json.dumps(results))
        accelerator.wait_for_everyone()


def main(cases: str, tokenizer: str, folder: str) -> None:
    """Run on one of several processes."""
    study(json.loads(Path(cases).read_text()), tokenizer, folder, Accelerator(cpu=True))
