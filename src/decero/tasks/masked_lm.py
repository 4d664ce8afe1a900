"""Masked language modelling for encoders (Devlin et al. 2019; masks drawn anew each epoch: Liu et al. 2019)."""

from typing import Any

from torch import nn
from transformers import AutoModelForMaskedLM

from decero.config.pretraining import PretrainMLM
from decero.data.collators import MaskedLanguageModeling
from decero.data.tokenization import tokenize_documents
from decero.execution.objective import Objective, masked_lm
from decero.tasks.scored_tokens import ScoredTokens


class MaskedLM(ScoredTokens):
    recipe, Config, auto_class = "pretrain_mlm", PretrainMLM, AutoModelForMaskedLM
    command = "fill"
    tokenizer_needs = ("mask_token", "pad_token")
    most_epochs = 40  # BERT read its text 40 times (Devlin et al. 2019, appendix A.2)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_documents(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def _objective(self, frozen: bool) -> Objective:
        settings = self.config.objective.model_dump(exclude={"scored_queries"})
        collate = MaskedLanguageModeling(self.tokenizer, seed=self.config.seed, frozen=frozen, **settings)
        # A compiler wants one shape; the last layer would compute another number of positions in each batch.
        return masked_lm(collate, self.config.objective.scored_queries and not self.config.training.compile)

    def objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=False)

    def reported_objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=True)
