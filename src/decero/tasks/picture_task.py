"""What all tasks that read pictures share: the corpus, rows of pixels, the model, its image processor, its cost."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decero.config.picture_source import PictureSource
from decero.config.sections import ModelSection
from decero.data.augmentation import Augmentation
from decero.data.corpus import load_corpus, numbered, without_train
from decero.data.image_rows import (
    Columns,
    Pixels,
    check_pictures,
    decode_rows,
    first_size,
    picture_folder,
    picture_hashes,
    read_picture_files,
)
from decero.data.labels import in_known_order, label_budget
from decero.execution.attention_kernels import choose_attention
from decero.execution.classification_head import checkpoint_config, label_fields, label_names, redraw_head
from decero.execution.image_models import build_image_model, pixels_for, processor_for, size_fields
from decero.execution.image_objective import PictureCollator
from decero.execution.objective import Objective
from decero.execution.unwrap import unwrap
from decero.planning.cost import picture_flops
from decero.tasks.base import Task, TaskData, cut_note
from decero.training.records import TrainResult
from decero.training.runs import Run

NORMS = (nn.modules.batchnorm._BatchNorm,)


def picture_source(data: PictureSource) -> dict[str, Any]:
    """The arguments of `load_corpus`: equal pictures share a split, whoever reads them.

    The hashes are those of train, from which the other splits are held out.
    """
    columns = [data.image_column, *filter(None, [getattr(data, "mask_column", None)])]
    return data.source() | {
        "check": check_pictures, "read": partial(read_picture_files, columns=columns),
        "hashes": partial(picture_hashes, folder=picture_folder(data.files, "train")),
    }  # fmt: skip


class PictureTask(Task):
    """A task whose examples are pictures. head: the end of the names of its heads, such as `ForImageClassification`."""

    tokenizer_needs = ()
    needs_offsets = False
    budget_unit = "pictures"
    scored_on = "test"
    head: ClassVar[str]
    _train_pictures: Dataset | None = None  # without train there is nothing to paste from

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        raise TypeError("pictures have no tokenizer")

    @property
    def processor(self) -> Any:
        return processor_for(self.auto_class, self.pixels)

    @property
    def max_length(self) -> int:
        return 1

    @cached_property
    def checkpoint(self) -> Any:
        """The configuration of the checkpoint to start from; None for random weights."""
        return checkpoint_config(self.config.model)

    @property
    def known(self) -> list[str]:
        """The labels of the checkpoint's head, in its order."""
        return label_names(self.checkpoint, self.head)

    # --- data

    def folder_of(self, split: str) -> Path | None:
        """The folder where relative paths of a split begin."""
        return picture_folder(self.config.data.files, split)

    def place_of(self, split: str) -> str:
        """What messages call a split: its file, if it has one. A split without files is of train."""
        files = self.config.data.files or {}
        file = files.get(split, files.get("train"))
        return file if isinstance(file, str) and Path(file).is_file() else split

    def load_pictures(self, notes: list[str]) -> DatasetDict:
        """Read the rows as they are, with their numbers."""
        data = self.config.data
        corpus = load_corpus(
            **picture_source(data), number_rows=True, say=notes.append, needs_train=not self.config.eval_only,
        )  # fmt: skip
        if self.config.eval_only:
            corpus = DatasetDict(without_train(corpus))
        return DatasetDict({split: numbered(rows) for split, rows in corpus.items()})

    def cut_train(self, corpus: DatasetDict, problem_type: str, notes: list[str]) -> None:
        """Cut train to the label budget."""
        if "train" not in corpus:
            return
        total, budget = len(corpus["train"]), self.config.data.max_train_rows
        corpus["train"] = label_budget(corpus["train"], budget, problem_type, self.config.seed)
        notes += cut_note("train", len(corpus["train"]), total, "data.max_train_rows")

    def first_picture(self) -> tuple[int, int]:
        """The height and width of the first picture."""
        split = next(iter(self.corpus.splits))
        rows = self.corpus.splits[split][""]
        return first_size(rows, self.config.data.image_column, self.place_of(split), self.folder_of(split))

    @cached_property
    def pixels(self) -> Pixels:
        """The form in which the model gets pictures."""
        return pixels_for(self.config.model, self.config.data.image_size, self.first_picture)

    def columns(self, split: str) -> Columns:
        """Which columns of a split hold what."""
        return Columns(self.config.data.image_column, folder=self.folder_of(split))

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        """Read the pictures; the name is that of other tasks."""
        rows = self.decoded(parts[""], split, self.pixels)
        if split == "train":
            self._train_pictures = rows
        return {"": rows}

    def add_note(self, note: str) -> None:
        """Say this before training."""
        self.corpus = self.corpus._replace(notes=(*self.corpus.notes, note))

    def decoded(self, rows: Dataset, split: str, pixels: Pixels) -> Dataset:
        """Rows of pixels in any form."""
        num_proc = self.config.data.num_proc
        return decode_rows(rows, self.columns(split), pixels, where=self.place_of(split), num_proc=num_proc)

    def text_keys(self, rows: Dataset, split: str) -> Any:
        """Hashes of the pictures of a split, (rows,), to find repeats."""
        return picture_hashes(rows, self.config.data.image_column, self.folder_of(split))

    # --- model and objective

    def model_fields(self) -> dict[str, Any]:
        return label_fields(self.corpus.label_names)

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model with a head for the labels; a checkpoint's head for other labels is drawn anew."""
        fields = self.model_fields() | size_fields(section, self.pixels)
        model = build_image_model(
            section, self.auto_class, self.config.seed, new_head=not self.config.eval_only, **fields
        )
        if self.known and not self.config.eval_only and not self.keeps_head(self.corpus.label_names):
            redraw_head(model, self.config.seed)
        return model

    def keeps_head(self, names: Sequence[str]) -> bool:
        """Whether the head of the checkpoint knows these labels; they may differ in case and have other ids."""
        return in_known_order(names, self.known) is not None

    @property
    def augmentation(self) -> Augmentation | None:
        """How training pictures change at random; None for not at all."""
        return Augmentation(**self.config.data.augment.model_dump(), seed=self.config.seed) or None

    def collator(self, trains: bool) -> PictureCollator:
        """The collator; in training it changes pictures at random."""
        augment = self.augmentation if trains else None
        pastes = augment is not None and augment.copy_paste > 0
        return PictureCollator(self.pixels, augment, scenes=self._train_pictures if pastes else None)

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """The objective after choosing the attention kernel."""
        model.to(run.accelerator.device)  # type: ignore[arg-type]
        line = choose_attention(
            model, run.accelerator.device, run.training.mixed_precision, 0, self.config.model.attn_implementation
        )
        if run.progress:
            run.print(line, *self.remarks_on(model))
        self.say_export(run, model)
        self.training_objective = self.objective(model)
        return self.training_objective

    def remarks_on(self, model: nn.Module) -> list[str]:
        """Say what a reader of the results must know of this model."""
        if not any(isinstance(module, NORMS) for module in model.modules()):
            return []
        return [
            f"{type(unwrap(model)).__name__} has batch norm: its results depend on training.per_device_batch_size "
            "and on the number of processes"
        ]

    def own_costs(self, run: Run, result: TrainResult, data: TaskData) -> dict[str, Any]:
        """FLOPs as torch counts them, and the pictures that were read; a picture has no tokens."""
        if run.eval_only:
            return {}
        each = picture_flops(result.model, self.reported_objective(result.model), data.train)
        return {"pictures": result.tokens, "total_flos": int(each * result.tokens)}
