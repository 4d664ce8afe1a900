"""Permutation language modelling for encoders, and for XLNet itself (Yang et al. 2019)."""

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from decero.config.pretraining import PretrainPLM
from decero.config.sections import ModelSection
from decero.data.permutation import PermutationLanguageModeling
from decero.errors import UserError
from decero.execution.build import config_of
from decero.execution.objective import Objective, masked_lm
from decero.execution.order_proof import prove_order, takes_target_mapping
from decero.execution.pretraining_objective import PERMUTATION, mark_objective
from decero.execution.transformers_internals import heads_of
from decero.execution.unwrap import unwrap
from decero.tasks.base import TaskData
from decero.tasks.scored_tokens import ScoredTokens
from decero.training.runs import Run


class PermutationLM(ScoredTokens):
    recipe, Config = "pretrain_plm", PretrainPLM
    auto_class: Any = AutoModelForMaskedLM
    command = "fill"
    tokenizer_needs = ("mask_token", "pad_token")
    most_epochs = 40  # as for masked language modelling: targets and orders are new each time

    @property
    def row_length(self) -> int:
        return self.max_length + int(self._collator(False, False).most_targets(self.max_length))

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model; XLNet has its own two streams, and its head belongs to another Auto class."""
        heads: Any = heads_of(AutoModelForCausalLM, type(config_of(section)))
        own_streams = any(takes_target_mapping(head.forward) for head in heads)
        self.auto_class = AutoModelForCausalLM if own_streams else AutoModelForMaskedLM
        return super().initial_model(section)

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """Raises UserError for a model that does not keep to an order of prediction; see `prove_order`."""
        objective = super().optimize(run, model, data)
        if why := prove_order(model):
            kind, source = unwrap(model).config.model_type, self.config.model.config or self.config.model.name_or_path
            raise UserError(
                f"model: {source}: {kind} cannot learn from permuted orders: {why}; use a decero_encoder, bert, "
                "roberta, modernbert or xlnet"
            )
        return objective

    def _collator(self, frozen: bool, for_xlnet: bool) -> PermutationLanguageModeling:
        settings = self.config.objective.model_dump()
        return PermutationLanguageModeling(
            self.tokenizer, seed=self.config.seed, frozen=frozen, for_xlnet=for_xlnet, **settings
        )

    def _objective(self, model: nn.Module, frozen: bool) -> Objective:
        streams = takes_target_mapping(unwrap(model).forward)
        return masked_lm(self._collator(frozen, streams), packable=not streams)

    def objective(self, model: nn.Module) -> Objective:
        return self._objective(model, frozen=False)

    def reported_objective(self, model: nn.Module) -> Objective:
        return self._objective(model, frozen=True)

    def prepare_to_save(self, model: Any) -> None:
        mark_objective(model.config, PERMUTATION)
