"""The table of a comparison: one cell a contender, label budget and seed; each a run in a folder of its own."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from accelerate import Accelerator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from decero.config.comparison import Compare, Contender
from decero.config.finetuning import FinetuneClassification
from decero.config.sections import LabelledData
from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean
from decero.evaluation import verdict
from decero.evaluation.metrics import MAIN_METRIC, METRICS, compute_metrics, example_scores
from decero.execution.unwrap import unwrap
from decero.tasks import record_of
from decero.tasks.classification import Classification, load_labelled
from decero.training.loop import train
from decero.training.memory import reset_peak_memory
from decero.training.records import write_result
from decero.training.runs import Run


@dataclass(frozen=True)
class Cell:
    """One run to do. `config` is None for the word-count floor."""

    contender: str
    budget: int | None
    seed: int
    folder: Path
    config: FinetuneClassification | None
    data: LabelledData
    problem_type: str
    keep_model: bool = False

    @property
    def name(self) -> str:
        return f"{self.contender}, {self.budget or 'all'} labels, seed {self.seed}"


def metric_of(config: Compare) -> str:
    """The metric that decides. Raises UserError for one that the task does not have."""
    problem_type = config.objective.problem_type
    known = METRICS[problem_type]
    if config.metric is not None and config.metric not in known:
        near = did_you_mean(config.metric, known) or f"; there are {', '.join(known)}"
        raise UserError(f"metric: {config.metric} is not a metric of {problem_type}{near}")
    return config.metric or MAIN_METRIC[problem_type]


def cells(config: Compare) -> list[Cell]:
    """Every run's settings. Raises UserError for a contender whose settings do not hold, before anything runs."""
    metric_of(config)
    for budget in config.label_budgets:  # a budget that the data cannot fill is known before anything runs
        data = config.data.model_copy(update={"max_train_rows": budget})
        corpus, _ = load_labelled(data, config.objective.problem_type, config.seed)
        if "test" not in corpus:
            raise UserError("a comparison needs a test split: give data.files.test or data.test_fraction")
    table = []
    for budget in config.label_budgets:
        for name, contender in config.contenders.items():
            for seed in config.seeds:
                folder = config.folder / "runs" / name / f"labels-{budget or 'all'}" / f"seed-{seed}"
                data = config.data.model_copy(update={"max_train_rows": budget})
                problem_type = config.objective.problem_type
                run = None if contender.tfidf else _merge(config, name, contender, data, seed, folder)
                table.append(Cell(name, budget, seed, folder, run, data, problem_type, config.keep_models))
    return table


def _merge(
    config: Compare, name: str, contender: Contender, data: LabelledData, seed: int, folder: Path
) -> FinetuneClassification:
    shared = config.training.model_dump()
    if "save_steps" not in config.training.model_fields_set:
        shared["save_steps"] = None  # runs of a minute are repeated, not resumed
    settings = {
        "output": str(folder),
        "seed": seed,
        "model": contender.model.model_dump() if contender.model else None,
        "tokenizer": contender.tokenizer.model_dump(),
        "data": data.model_dump(),
        "objective": config.objective.model_dump(),
        "optim": config.optim.model_dump() | contender.optim,
        "training": shared | contender.training,
    }
    run = FinetuneClassification.parse(settings, f"contenders.{name}")
    run.call.resume = config.resume  # from its last checkpoint, where it saves some
    return run


def run_cell(cell: Cell, accelerator: Accelerator) -> str:
    """Do one run, unless its record is there already; a run that fails is recorded and the others go on.

    Leaves result.json, predictions.parquet and, of a model, metrics.jsonl and config.yaml. Returns a line that says how
    it went.
    """
    record = _read(cell)
    lacks_model = cell.keep_model and cell.config is not None and not (cell.folder / "model").is_dir()
    if record is None or record["status"] != "ok" or lacks_model:
        reset_peak_memory()
        try:
            record = _fit_words(cell, accelerator) if cell.config is None else _fit_model(cell, accelerator)
        except (UserError, RuntimeError, ValueError) as error:
            if accelerator.num_processes > 1 and not isinstance(error, UserError):
                raise  # the other processes may not have met it, and would wait for ever
            record = {"status": "failed", "error": " ".join(str(error).split()), "metric": {}}
        record = write_result(_made(cell.folder, accelerator), accelerator, record)
    if record["status"] == "failed":
        return f"failed: {record['error']}"
    metric = record["metric"][MAIN_METRIC[cell.problem_type]]
    return f"{MAIN_METRIC[cell.problem_type]} {metric:.4f} in {record['wall_time_s']:.0f} s"


def _fit_model(cell: Cell, accelerator: Accelerator) -> dict[str, Any]:
    assert cell.config is not None
    if accelerator.is_main_process:
        _made(cell.folder).joinpath("config.yaml").write_text(cell.config.to_yaml(), encoding="utf-8")
    accelerator.wait_for_everyone()
    run = Run(
        accelerator, cell.config.training, cell.config.optim, cell.folder, cell.config.seed, cell.config.resume,
        progress=False, tag=f"{cell.name}/", config=cell.config,
    )  # fmt: skip
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # a line a run says enough
    task = Classification(cell.config)
    try:
        data = task.load_data(run)
        model = task.build_model()
        result = train(run, model, data.train, task.optimize(run, model, data), task.evaluator(run, data))
        record = record_of(run, task, result, data)
    finally:
        accelerator.free_memory()
        if not bars:
            datasets.enable_progress_bars()
    if cell.keep_model and accelerator.is_main_process:
        unwrap(result.model).save_pretrained(cell.folder / "model")
        task.tokenizer.save_pretrained(cell.folder / "model")
    return {"status": "ok"} | record


def _fit_words(cell: Cell, accelerator: Accelerator) -> dict[str, Any]:
    """TF-IDF of words and word pairs, then a linear model with fixed settings: nothing is tuned, so nothing leaks."""
    corpus, names = load_labelled(cell.data, cell.problem_type, cell.seed)

    def texts(split: str) -> list[str]:
        columns = [cell.data.text_column] + ([cell.data.text_pair_column] if cell.data.text_pair_column else [])
        return [" ".join(map(str, row)) for row in zip(*(corpus[split][c] for c in columns), strict=True)]

    linear = LogisticRegression(C=10, max_iter=1000)
    head = {"multi_label_classification": OneVsRestClassifier(linear), "regression": Ridge()}.get(
        cell.problem_type, linear
    )
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), head)
    references = np.asarray(corpus["test"]["labels"])
    started = time.perf_counter()
    pipeline.fit(texts("train"), np.asarray(corpus["train"]["labels"]))
    predictions = pipeline.predict(texts("test"))
    if accelerator.is_main_process:
        table = pd.DataFrame({"label": references.tolist(), "prediction": predictions.tolist()})
        table.rename_axis("index").reset_index().to_parquet(_made(cell.folder) / "predictions.parquet", index=False)
    return {
        "status": "ok",
        "metric": compute_metrics(cell.problem_type, predictions, references),
        "seed": cell.seed,
        "train_examples": len(corpus["train"]),
        "label_names": names,
        "num_parameters": sum(int(np.size(part.coef_)) for part in getattr(head, "estimators_", [head])),
        "total_flos": 0,
        "wall_time_s": time.perf_counter() - started,
    }


def _made(folder: Path, accelerator: Accelerator | None = None) -> Path:
    if accelerator is None or accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read(cell: Cell) -> dict[str, Any] | None:
    path = cell.folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_runs(table: list[Cell]) -> list[verdict.Run]:
    """What every run left behind, for the verdict. Each prediction of the test set was made once."""
    runs = []
    for cell in table:
        record = _read(cell) or {"status": "failed", "error": "left no record", "metric": {}}
        scores, curve = None, []
        if record["status"] == "ok":
            predictions = pd.read_parquet(cell.folder / "predictions.parquet")
            columns = (np.array(predictions[c].tolist()) for c in ("prediction", "label"))
            scores = example_scores(cell.problem_type, *columns)
            if (log := cell.folder / "metrics.jsonl").is_file():
                curve = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        runs.append(
            verdict.Run(
                contender=cell.contender, budget=cell.budget, seed=cell.seed, status=record["status"],
                error=record.get("error"), metrics=record["metric"], scores=scores, curve=curve,
                wall_time_s=record.get("wall_time_s", 0.0), num_parameters=record.get("num_parameters", 0),
                total_flos=record.get("total_flos", 0.0), upfront_wall_time_s=_pretraining_time(cell),
            )
        )  # fmt: skip
    return runs


def _pretraining_time(cell: Cell) -> float:
    """Seconds that were spent here on the checkpoint a contender starts from; 0 when somebody else made it."""
    if cell.config is None or cell.config.model.name_or_path is None:
        return 0.0
    folder = Path(resolve_package_path(cell.config.model.name_or_path))
    record = folder.parent / "result.json"
    if not (folder.is_dir() and record.is_file()):
        return 0.0
    return float(json.loads(record.read_text(encoding="utf-8")).get("wall_time_s", 0.0))


def facts(config: Compare, table: list[Cell]) -> dict[str, str]:
    """What a reader of the report needs to know of how it came about."""
    record = next((r for cell in table if (r := _read(cell)) and r["status"] == "ok"), None)
    if record is None:
        return {"configuration": f"{config.output}/config.yaml"}
    corpus, names = load_labelled(config.data, config.objective.problem_type, config.seed)
    return {
        "data": config.data.name or str(config.data.files),
        "examples": ", ".join(f"{split} {len(rows):,}" for split, rows in corpus.items()),
        "labels": ", ".join(names[:20]),
        "text read": f"the first {config.data.max_length} tokens of each example",
        "machine": f"{record['machine']}, {record['num_processes']} process(es) on {record['device']}",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "commit": str(record["commit"]),
        "command": record["command"],
        "configuration": f"{config.output}/config.yaml",
    }
