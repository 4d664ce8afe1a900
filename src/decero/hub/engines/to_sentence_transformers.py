"""Write an encoder as a folder of sentence-transformers: one vector for a text, the mean of its tokens' states."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from decero.execution.positions import positions_of
from decero.hub.engines.engine import HEADS_OF_ENCODERS, Engine, Running


def convert(model: Any, tokenizer: Any, folder: Path, quantization: str | None) -> None:
    """Write the encoder without its head, and the settings of the mean (Reimers & Gurevych 2019, section 3)."""
    from sentence_transformers import SentenceTransformer

    with TemporaryDirectory() as scratch:
        model.base_model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        whole = SentenceTransformer(scratch, device="cpu")  # without settings in the folder it takes the mean
    longest = positions_of(model)
    if longest is not None and (whole.max_seq_length is None or whole.max_seq_length > longest):
        whole.max_seq_length = longest
    whole.save_pretrained(str(folder), create_model_card=False)


def run(folder: Path, model: Any, tokenizer: Any) -> Running:
    """Open the folder in sentence-transformers, in fp32."""
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(folder), device="cpu").float().eval()

    @torch.no_grad()
    def outputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        texts = {name: tensor.flatten(0, -2) for name, tensor in batch.items()}  # choices are texts, too
        return {"sentence_embedding": whole(texts)["sentence_embedding"]}

    return Running(outputs)


def usage(name: str, model: Any) -> str:
    """Return the lines that encode texts."""
    return (
        f'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{name}")\n'
        'vectors = model.encode(["...", "..."])\nscores = model.similarity(vectors, vectors)'
    )


SENTENCE_TRANSFORMERS = Engine(
    name="sentence-transformers",
    packages=("sentence_transformers",),
    heads=dict.fromkeys(("bert", "roberta", "distilbert", "electra", "modernbert", "eurobert"), HEADS_OF_ENCODERS),
    quantizations=(),
    weights=("*.safetensors",),
    convert=convert,
    run=run,
    usage=usage,
    library="sentence-transformers",
    task="sentence-similarity",
    keeps_tokenizer=False,
)
