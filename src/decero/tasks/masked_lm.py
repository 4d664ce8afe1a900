"""Masked language modelling for encoders (Devlin et al. 2019; masks drawn anew each epoch: Liu et al. 2019)."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from decero.config.pretraining import PretrainMLM
from decero.data.collators import MaskedLanguageModeling
from decero.data.tokenizer import tokenizer_fingerprint
from decero.errors import UserError
from decero.execution.distillation import distilled_masked_lm
from decero.execution.objective import Objective, masked_lm
from decero.execution.optimize import SHORTEST_ROW, pack_if_proven
from decero.execution.pretraining_objective import mark_objective
from decero.inference import Loaded
from decero.tasks.base import Scores, TaskData
from decero.tasks.scored_tokens import ScoredTokens
from decero.tasks.teacher import WHERE, find_teacher, load_teacher, recall, remember
from decero.training.runs import Run


class MaskedLM(ScoredTokens):
    recipe, Config, auto_class = "pretrain_mlm", PretrainMLM, AutoModelForMaskedLM
    command = "fill"
    tokenizer_needs = ("mask_token", "pad_token")
    most_epochs = 40  # BERT read its text 40 times (Devlin et al. 2019, appendix A.2)

    @cached_property
    def teacher(self) -> Loaded:
        """The teacher. Raises UserError for another tokenizer, and for fewer positions than a row has."""
        settings = self.config.objective.distill
        loaded = load_teacher(settings, "fill")
        if tokenizer_fingerprint(loaded.tokenizer) != tokenizer_fingerprint(self.tokenizer):
            raise UserError(
                f"{WHERE}: {settings.teacher} has another tokenizer than this run, so it cannot read the same tokens; "
                f"set tokenizer.name_or_path={settings.teacher}"
            )
        positions = loaded.positions()
        if positions is not None and positions < self.max_length:
            raise UserError(
                f"{WHERE}: {settings.teacher} reads {positions} tokens; lower data.max_length to {positions}"
            )
        return loaded

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """The rows of a run. A teacher is checked, and the run records which one it is."""
        if settings := self.distill:
            _, record = find_teacher(settings, "fill")
            _ = self.teacher
            stored, record = recall(run, record["fingerprint"], record)
            if stored is None and not run.config.dry_run:
                remember(run, record["fingerprint"], np.empty((0, 0), dtype=np.float32), record)
            self.teacher_record = record | {"temperature": settings.heat, "alpha": settings.alpha}
        return super().load_data(run, splits)

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """Rows are packed where that is proven for the model and, if there is one, for its teacher."""
        if self.distill and run.training.packing != "off":
            teacher: Any = self.teacher.model.to(run.accelerator.device)  # type: ignore[arg-type]
            capacity = max(self.max_length, SHORTEST_ROW)
            plain = self._plain(frozen=False)
            found, _ = pack_if_proven(plain, teacher, data.train, capacity, run.training.packing)
            if not found.packed:
                run = replace(run, training=run.training.model_copy(update={"packing": "off"}))
        return super().optimize(run, model, data)

    def _plain(self, frozen: bool) -> Objective:
        settings = self.config.objective.model_dump(exclude={"scored_queries", "distill"})
        collate = MaskedLanguageModeling(self.tokenizer, seed=self.config.seed, frozen=frozen, **settings)
        return masked_lm(collate, self.config.objective.scored_queries)

    def objective(self, model: nn.Module) -> Objective:
        plain, distill = self._plain(frozen=False), self.distill
        if not distill:
            return plain
        return distilled_masked_lm(
            plain, self.teacher.model, distill.alpha, distill.heat, scored_queries=self.config.objective.scored_queries,
            autocast=self.config.training.mixed_precision == "bf16",
        )  # fmt: skip

    def reported_objective(self, model: nn.Module) -> Objective:
        return self._plain(frozen=True)

    def prepare_to_save(self, model: Any) -> None:
        mark_objective(model.config, None)
        if model.config.model_type == "decero_encoder":
            model.config.mask_token_id = self.tokenizer.mask_token_id  # EuroBERT's configuration names it

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        metric, facts = super().score(run, model, data)
        return Scores(metric, facts | ({"teacher": self.teacher_record} if self.teacher_record else {}))
