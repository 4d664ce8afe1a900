"""A tiny masked-language-model run that takes a second."""

import pytest
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForMaskedLM, set_seed

from decero.data.collators import MaskedLanguageModeling
from decero.data.rows import tokenize_documents
from decero.models import DeceroEncoderConfig
from decero.training.config import OptimSection, TrainingSection
from decero.training.loop import train
from decero.training.objectives import masked_lm


@pytest.fixture
def rows(texts, tokenizer):
    return tokenize_documents(Dataset.from_dict({"text": texts}), tokenizer, max_length=48)


@pytest.fixture
def objective(tokenizer):
    return masked_lm(MaskedLanguageModeling(tokenizer, seed=1))


@pytest.fixture
def tiny_model():
    def build(dropout=0.0, **fields):
        set_seed(0)
        sizes = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1}
        sizes |= {"intermediate_size": 37, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**(sizes | fields)))

    return build


@pytest.fixture
def fit(rows, objective, tiny_model, tmp_path):
    """Train a tiny model; returns the result. Settings of training and optim may be laid over."""

    def run(
        output=tmp_path, *, model=None, evaluate=None, resume=False, optim=None, dataset=rows, objective=objective,
        **training,
    ):  # fmt: skip
        settings = {"max_train_steps": 6, "global_batch_size": 12, "per_device_batch_size": 5, "logging_steps": 1}
        return train(
            Accelerator(cpu=True), model or tiny_model(), dataset, objective,
            OptimSection(**({"learning_rate": 1e-2} | (optim or {}))), TrainingSection(**(settings | training)),
            output=output, seed=4, evaluate=evaluate, resume=resume, progress=False,
        )  # fmt: skip

    return run
