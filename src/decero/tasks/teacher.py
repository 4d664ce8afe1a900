"""The teacher of a distilled run: find it, check that it fits, and let it label texts, once."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset, List, Value, concatenate_datasets
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from decero.config.distill_sections import DistillSection
from decero.data.labels import in_known_order
from decero.data.tokenization import tokenize_examples
from decero.data.unlabelled import joined, row_hashes
from decero.errors import UserError
from decero.execution.classification_head import label_names
from decero.execution.distillation import TEACHER_COLUMNS
from decero.execution.model_folder import fingerprint_of, open_checkpoint
from decero.execution.optimize import SHORTEST_ROW, pack_if_proven
from decero.execution.pretrained import one_line, read_model_config
from decero.execution.pretraining_objective import PERMUTATION, objective_of
from decero.formatting import duration
from decero.inference import Loaded, load
from decero.planning.probe import time_evaluation
from decero.training.evaluation import predict_logits
from decero.training.runs import Run, main_first, on_main

FILE = ".teacher.safetensors"  # in the folder of a run: which teacher it has, and the logits of the texts
HEADS = {"classify": ("ForSequenceClassification", "classification"), "fill": ("ForMaskedLM", "masked language model")}
WHERE = "objective.distill.teacher"


def find_teacher(settings: DistillSection, command: str) -> tuple[Any, dict[str, Any]]:
    """Return the configuration of the teacher, and its record: name and fingerprint. Its weights are not loaded.

    command: `classify` or `fill`, which need a head of their own. Raises UserError where it cannot be the teacher.
    """
    try:
        checkpoint = open_checkpoint(settings.teacher, revision=settings.revision)
        with one_line(settings.teacher):
            config = read_model_config(checkpoint)
    except UserError as error:
        raise UserError(f"{WHERE}: {error}") from None
    head, kind = HEADS[command]
    if not any(head in str(name) for name in config.architectures or []):
        raise UserError(
            f"{WHERE}: {settings.teacher} has no {kind} head; fine-tune it on train, and give the folder model/"
        )
    if command == "fill" and objective_of(config) == PERMUTATION:
        raise UserError(
            f"{WHERE}: {settings.teacher} learnt permutation language modelling, where no token sees a hole; use a "
            "teacher of masked language modelling"
        )
    return config, {"name": settings.teacher, "fingerprint": fingerprint_of(checkpoint)}


def load_teacher(settings: DistillSection, command: str) -> Loaded:
    """Load the teacher and its own tokenizer, in evaluation mode, without gradients."""
    try:
        loaded = load(settings.teacher, command, revision=settings.revision)
    except UserError as error:
        raise UserError(f"{WHERE}: {error}") from None
    loaded.model.requires_grad_(False)
    return loaded


def label_places(config: Any, name: str, problem_type: str, labels: tuple[str, ...]) -> list[int]:
    """Return which output of the teacher stands for each label of the student; labels are matched by name.

    Raises UserError for a teacher of another kind of label, and for one with other labels.
    """
    of_one = "regression" if config.num_labels == 1 else "single_label_classification"
    if (kind := config.problem_type or of_one) != problem_type:
        raise UserError(f"{WHERE}: {name} was trained for {kind}, and this run is {problem_type}; give another teacher")
    if problem_type == "regression":
        return [0]
    known = label_names(config)
    order = in_known_order(labels, known)
    if order is None or len(order) != len(labels):
        raise UserError(
            f"{WHERE}: {name} has other labels ({', '.join(known[:20])}; train has {', '.join(labels[:20])}); "
            "fine-tune it for the labels of train"
        )
    return [order.index(label) for label in labels]


def taught_rows(task: Any, run: Run, rows: Dataset) -> Dataset:
    """Return the rows of train and, behind them, the unlabelled ones, with TEACHER_COLUMNS.

    The teacher reads the text with its own tokenizer, in fp32. Its logits are written to the folder of the run, so that
    a resumed run has the same ones. In a dry run they are zeros, and their time is estimated.

    task: a `Classification`; sets its `teacher_record` and, in a dry run, `preparation_s`.
    Raises UserError for a teacher that does not fit, and for another one than the run began with.
    """
    settings, corpus = task.config.objective.distill, task.corpus
    labelled, unlabelled = corpus.splits["train"][""], corpus.unlabelled
    config, record = find_teacher(settings, "classify")
    places = label_places(config, settings.teacher, task.problem_type, corpus.label_names)
    parts = [labelled] if unlabelled is None else [labelled, unlabelled]
    texts = joined(parts, (*corpus.columns, "labels"))
    with main_first(run.accelerator):
        more = [task.tokenize({"": part}, "the texts without labels")[""] for part in parts[1:]]
    what = row_hashes(texts, corpus.columns).tobytes(), record["fingerprint"], task.max_length, corpus.label_names
    logits, record = recall(run, _key(*what), record)
    if logits is None:
        logits, seconds = _label(task, run, texts, places)
        record |= {"texts": len(texts), "label_time_s": round(seconds, 3)}
        if not run.config.dry_run:
            run.print(f"teacher: {settings.teacher} labelled {len(texts):,} texts in {duration(seconds)}")
            remember(run, _key(*what), logits, record)
    heat = {} if task.problem_type == "regression" else {"temperature": settings.heat}
    task.teacher_record = record | heat | {"alpha": settings.alpha}
    taught = concatenate_datasets([rows, *more])
    values = logits.tolist(), [number < len(labelled) for number in range(len(texts))]
    for name, column, kind in zip(TEACHER_COLUMNS, values, (List(Value("float32")), Value("bool")), strict=True):
        taught = taught.add_column(name, column, feature=kind)
    return taught


def _label(task: Any, run: Run, texts: Dataset, places: list[int]) -> tuple[np.ndarray, float]:
    """Return the teacher's logits, (texts, labels), and the seconds that this took. Zeros in a dry run."""
    data, call = task.config.data, run.config.call
    if call.dry_run and call.device:
        return np.zeros((len(texts), len(places)), dtype=np.float32), 0.0  # its time is known on this machine only
    loaded = load_teacher(task.config.objective.distill, "classify")
    model: Any = loaded.model.to(run.accelerator.device)  # type: ignore[arg-type]
    length = min(data.max_length, loaded.positions() or data.max_length)
    with main_first(run.accelerator):
        rows = tokenize_examples(
            texts, loaded.tokenizer, max_length=length, text_column=data.text_column,
            text_pair_column=data.text_pair_column, num_proc=data.num_proc, where="the teacher's texts",
        )  # fmt: skip
    plain = task.plain_objective(model, loaded.tokenizer)
    objective, _ = pack_if_proven(plain, model, rows, max(length, SHORTEST_ROW), "auto")
    size = run.training.per_device_eval_batch_size

    def predict(model: Any, rows: Dataset) -> np.ndarray:
        return predict_logits(run.accelerator, model, rows, objective, size)

    if call.dry_run:
        task.preparation_s = time_evaluation(run.accelerator, predict, model, objective, rows, size)
        return np.zeros((len(texts), len(places)), dtype=np.float32), task.preparation_s
    started = time.perf_counter()
    return predict(model, rows)[:, places], time.perf_counter() - started


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def recall(run: Run, key: str, record: dict[str, Any]) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the logits and the record that the run has stored under `key`; None and `record` for none.

    Raises UserError where a run that is resumed began with another teacher or other texts.
    """
    found: list[Any] = [None]

    def read() -> None:
        path, began = run.output / FILE, any((run.output / "checkpoints").glob("step-*"))
        stored = _read(path) if path.is_file() else None
        if stored and stored[0]["key"] == key:
            found[0] = stored[1], json.loads(stored[0]["record"])
        elif stored and run.resume and began:
            raise UserError(
                f"{WHERE}: {record['name']}, or a text, has changed since {run.output} began, so its labels would "
                "differ; restore it, or give another output=FOLDER"
            )

    if run.config.dry_run:
        return None, record
    on_main(run.accelerator, read)
    broadcast_object_list(found)
    return found[0] or (None, record)


def _read(path: Path) -> tuple[dict[str, str], np.ndarray] | None:
    """Return what `remember` wrote; None for a damaged file, which is made again."""
    try:
        with safe_open(path, framework="numpy") as file:
            described = file.metadata() or {}
            return (described, file.get_tensor("logits")) if {"key", "record"} <= described.keys() else None
    except (SafetensorError, OSError):
        return None


def remember(run: Run, key: str, logits: np.ndarray, record: dict[str, Any]) -> None:
    """Write the logits and the record of the teacher into the folder of the run, whole or not at all."""
    path, described = run.output / FILE, {"key": key, "record": json.dumps(record)}

    def write() -> None:
        temporary = path.with_name(f"{FILE}.tmp")
        temporary.write_bytes(save({"logits": np.ascontiguousarray(logits)}, metadata=described))
        temporary.replace(path)

    on_main(run.accelerator, write)
