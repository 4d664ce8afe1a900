"""Fine-tune any encoder, ours or stock, to classify or to regress: the one path that every contender takes."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from pydantic import Field
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from decero.config.run_config import RunConfig
from decero.config.sections import LabelledData, ModelSection, OptimSection, Section, TokenizerSection, TrainingSection
from decero.data.collators import Classification
from decero.data.corpus import load_corpus
from decero.data.labels import encode_labels, label_budget
from decero.data.tokenization import tokenize_examples
from decero.errors import UserError
from decero.evaluation.metrics import MAIN_METRIC, compute_metrics, predict
from decero.execution.build import build_model, tokenizer_for
from decero.execution.objective import classification
from decero.execution.optimize import optimize
from decero.planning.forecast import forecast
from decero.training.evaluation import mean_loss, predict_logits
from decero.training.loop import TrainResult, train
from decero.training.runs import main_first

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class ClassificationSection(Section):
    problem_type: ProblemType = Field("single_label_classification", description="what a label is")


class FinetuneClassification(RunConfig):
    options = (*RunConfig.options, "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: LabelledData
    objective: ClassificationSection = ClassificationSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


def load_labelled(data: LabelledData, problem_type: str, seed: int) -> tuple[DatasetDict, list[str]]:
    """The corpus with encoded `labels`, train cut to the label budget; and the label names."""
    corpus, names = encode_labels(load_corpus(**data.source()), data.label_column, problem_type)
    return DatasetDict(
        corpus | {"train": label_budget(corpus["train"], data.max_train_rows, problem_type, seed)}
    ), names


def finetune(
    config: FinetuneClassification, accelerator: Accelerator, *, progress: bool = True, tag: str = ""
) -> tuple[dict[str, Any], TrainResult, PreTrainedTokenizerBase] | None:
    """Data, model, training, one look at the test set. Returns the record, the training result and the tokenizer.

    Leaves metrics.jsonl, checkpoints/ and predictions.parquet in the run's folder. A dry run returns None.
    """
    output, data, training = Path(config.output), config.data, config.training
    problem_type = config.objective.problem_type
    tokenizer = tokenizer_for(config.tokenizer, config.model, needs=("pad_token",))
    with main_first(accelerator):  # one process writes the cache, the others read it
        corpus, names = load_labelled(data, problem_type, config.seed)
        rows = {
            split: tokenize_examples(
                dataset, tokenizer, max_length=data.max_length, text_column=data.text_column,
                text_pair_column=data.text_pair_column, num_proc=data.num_proc, where=split,
            )
            for split, dataset in corpus.items()
        }  # fmt: skip
    labels: dict[str, Any] = {
        "num_labels": len(names),
        "problem_type": problem_type,
        "id2label": dict(enumerate(names)),
    }
    labels["label2id"] = {name: i for i, name in enumerate(names)}
    model = build_model(
        config.model, AutoModelForSequenceClassification, tokenizer, data.max_length, config.seed, **labels
    )
    held_out = "test" if "test" in rows else "validation"
    if held_out not in rows:
        raise UserError("there is neither a test nor a validation split to score on; give data.test_fraction")
    if getattr(model.config, "type_vocab_size", 2) < 2 and "token_type_ids" in rows["train"].column_names:
        rows = {split: dataset.remove_columns("token_type_ids") for split, dataset in rows.items()}
    cut = float(np.mean(rows["train"]["truncated"]))
    if cut and progress:
        accelerator.print(
            f"{cut:.1%} of the training texts are longer than data.max_length {data.max_length} and are cut"
        )

    objective = classification(Classification(tokenizer), problem_type)
    objective = optimize(accelerator, model, objective, rows["train"], data.max_length, training, quiet=not progress)

    def score(model: nn.Module, dataset: Dataset) -> tuple[dict[str, float], np.ndarray]:
        logits = predict_logits(accelerator, model, dataset, objective, training.per_device_eval_batch_size)
        references = np.asarray(dataset["labels"])
        return compute_metrics(problem_type, predict(problem_type, logits), references), logits

    validation = rows.get("validation")

    def evaluate(model: nn.Module, dataset: Dataset | None = validation) -> dict[str, float]:
        size = training.per_device_eval_batch_size
        return score(model, dataset)[0] | {"loss": mean_loss(accelerator, model, dataset, objective, size)["loss"]}

    if config.dry_run:
        forecast(config, accelerator, model, objective, rows["train"], validation, evaluate, score)
        return None
    result = train(
        accelerator, model, rows["train"], objective, config.optim, training, output=output, seed=config.seed,
        evaluate=evaluate if validation else None, resume=config.resume, progress=progress,
        tag=tag,
    )  # fmt: skip
    record: dict[str, Any] = {"seed": config.seed, "label_names": names, "train_examples": len(rows["train"])}
    record |= result.record()
    metrics, logits = score(result.model, rows[held_out])
    record |= {"metric": metrics, "main_metric": MAIN_METRIC[problem_type], "split": held_out}
    if accelerator.is_main_process:
        write_predictions(output, problem_type, np.asarray(rows[held_out]["labels"]), logits)
    return record, result, tokenizer


def write_predictions(output: Path, problem_type: str, labels: np.ndarray, logits: np.ndarray) -> None:
    """predictions.parquet: a row an example of the held-out split, in its order: index, label, prediction, logits."""
    table = {"label": labels.tolist(), "prediction": predict(problem_type, logits).tolist(), "logits": logits.tolist()}
    pd.DataFrame(table).rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)
