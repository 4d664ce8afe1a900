"""Attribute a model's answer to the tokens of the text: integrated gradients by captum, and gradient x input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.explain.capture import frozen
from decero.explain.explained import Explained

Method = Literal["integrated_gradients", "gradient_x_input"]
Baseline = Literal["mask", "pad", "zero"]
TOLERANCE = 0.02  # of the difference of outputs, or of 1 nat if that is smaller than 1
STEPS = (16, 64, 256)  # of the integral; the next number is tried while the gap is above the tolerance
BASELINES = {
    "mask": ("a text of mask tokens", "un texto de tokens de máscara"),
    "pad": ("a text of padding tokens", "un texto de tokens de relleno"),
    "zero": ("embeddings of zero", "embeddings a cero"),
}
SENTENCES = {
    "integrated": (
        "Integrated gradients from {baseline}: they sum to {sum:.2f}, and the answer differs by {difference:.2f}.",
        "Gradientes integrados desde {baseline}: suman {sum:.2f} y la respuesta cambia en {difference:.2f}.",
    ),
    "incomplete": (
        " They are not complete: the two numbers should be equal. The model changes too fast on the way, so even the "
        "signs of the scores may be wrong.",
        " No están completos: los dos números deberían ser iguales. El modelo cambia demasiado rápido en el camino; "
        "hasta los signos pueden ser falsos.",
    ),
    "gradient": (
        "Gradient x input: the slope of the answer at this text. The scores need not sum to anything.",
        "Gradiente x entrada: la pendiente de la respuesta en este texto. Los valores no tienen por qué sumar nada.",
    ),
}


@dataclass(frozen=True)
class Attribution:
    """Hold how much each token of the text adds to each explained output.

    scores: (outputs, tokens), in nats of log probability (of a vector: cosine); signed. The tokens are those of
        `input_ids`, special ones too: the source of an encoder-decoder.
    baseline: the text that the answer is compared with: all tokens that a reader wrote replaced by the `mask` token or
        by the `pad` token, or all embeddings `zero`. None for gradient x input, which compares with nothing.
    differences: (outputs), output of the text minus output of the baseline. gaps: (outputs), sum of the scores minus
        this difference; 0 would be exact (completeness: Sundararajan et al. 2017, section 2). Empty without baseline.
    steps: points of the integral.
    """

    explained: Explained
    method: Method
    scores: np.ndarray
    baseline: Baseline | None
    differences: np.ndarray
    gaps: np.ndarray
    steps: int

    @property
    def closed(self) -> np.ndarray:
        """Return for each output whether its gap is at most TOLERANCE x max(1, |difference|)."""
        return np.abs(self.gaps) <= TOLERANCE * np.maximum(1, np.abs(self.differences))

    @property
    def complete(self) -> bool:
        """Whether every gap is small: see `closed`."""
        return bool(self.closed.all())

    def compared_with(self, language: str) -> str:
        """Name the text of comparison, in `en` or `es`; nothing for gradient x input."""
        return "" if self.baseline is None else BASELINES[self.baseline][("en", "es").index(language)]

    def describe(self, language: str) -> str:
        """Say in one or two sentences, in `en` or `es`, what the scores are and whether they are complete."""
        at = ("en", "es").index(language)
        if self.baseline is None:
            return SENTENCES["gradient"][at]
        said = SENTENCES["integrated"][at].format(
            baseline=self.compared_with(language), sum=self.scores.sum(), difference=self.differences.sum()
        )
        return said + ("" if self.complete else SENTENCES["incomplete"][at])


def attribute(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, explained: Explained,
    method: Method = "integrated_gradients", *, baseline: Baseline | None = None,
    written: list[bool] | None = None, summed: bool = False,
) -> Attribution:  # fmt: skip
    """Attribute each explained output to the embedding of each token, summed over its features.

    method: `integrated_gradients` (Sundararajan et al. 2017, arXiv:1703.01365) follows the line from the baseline to
        the text, with as many points of STEPS as completeness needs. `gradient_x_input` (Shrikumar et al. 2017) is one
        backward pass an output; it is 0 for a `vector`, whose cosine with itself is at its maximum.
    baseline: default: `mask` if the tokenizer has a mask token, else `pad`.
    written: which tokens a reader wrote; the others, such as [CLS], stay in the baseline. None: all.
    summed: explain the sum of the outputs, as one output.

    Raises UserError if captum is missing, for a baseline whose token the tokenizer does not have, and for a model that
    does not look its tokens up in its embedding table.
    """
    if explained.what == "label" and model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__}: its decoder reads the text, too; gradients of the encoder alone mislead"
        )
    table = embedding_of(model)
    with frozen(model):
        embeds_1LD = _embed(model, table, explained, explained.ids_1L)

        def forward(embeds_BLD: Tensor) -> Tensor:
            with _first_output(table, embeds_BLD):
                scores_BP = explained.scores(model, len(embeds_BLD))
            return scores_BP.sum(dim=1, keepdim=True) if summed else scores_BP

        if method == "gradient_x_input":
            return _gradient_x_input(explained, forward, embeds_1LD)
        integrated = _captum()
        chosen = baseline or ("pad" if tokenizer.mask_token_id is None else "mask")
        start_1LD = _baseline(model, tokenizer, table, explained, chosen, written, embeds_1LD)
        with torch.no_grad():
            differences = (forward(embeds_1LD) - forward(start_1LD))[0].double().cpu().numpy()
        for steps in STEPS:
            scores_PL = np.stack([
                integrated(forward).attribute(
                    embeds_1LD, start_1LD, target=output, n_steps=steps,
                    internal_batch_size=explained.rows_per_pass(model),
                )[0].detach().double().sum(-1).cpu().numpy()
                for output in range(len(differences))
            ])  # fmt: skip
            gaps = scores_PL.sum(1) - differences
            done = Attribution(explained, method, scores_PL, chosen, differences, gaps, steps)
            if done.complete:
                break
        return done


def embedding_of(model: PreTrainedModel) -> nn.Module:
    """Return the embedding table of the text; of an encoder-decoder that of the source."""
    stack: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    return stack.get_input_embeddings()


def _captum() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UserError("integrated gradients need captum: pip install 'decero[explain]'") from error
    return IntegratedGradients


def _gradient_x_input(explained: Explained, forward: Callable[[Tensor], Tensor], embeds_1LD: Tensor) -> Attribution:
    embeds_1LD = embeds_1LD.detach().requires_grad_()
    outputs_P = forward(embeds_1LD)[0]
    last = len(outputs_P) - 1
    gradients = [torch.autograd.grad(out, embeds_1LD, retain_graph=p < last)[0] for p, out in enumerate(outputs_P)]
    scores_PL = np.stack([(embeds_1LD * g)[0].detach().double().sum(-1).cpu().numpy() for g in gradients])
    empty = np.zeros(0)
    return Attribution(explained, "gradient_x_input", scores_PL, None, empty, empty, 0)


def _baseline(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: nn.Module, explained: Explained, name: Baseline,
    written: list[bool] | None, embeds_1LD: Tensor,
) -> Tensor:  # fmt: skip
    """Return the embeddings where the integral starts: (1, length, hidden size)."""
    ids_1L = explained.ids_1L
    replaced_1L = torch.tensor([written or [True] * ids_1L.shape[1]], device=ids_1L.device)
    if name == "zero":
        return embeds_1LD.masked_fill(replaced_1L[..., None], 0.0)
    token = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}[name]
    if token is None:
        raise UserError(f"the tokenizer has no {name} token; use the baseline zero")
    return _embed(model, table, explained, ids_1L.masked_fill(replaced_1L, token))


@torch.no_grad()
def _embed(model: PreTrainedModel, table: nn.Module, explained: Explained, ids_1L: Tensor) -> Tensor:
    """Return what the embedding table gives in a pass of the whole model. Scaled tables scale here too."""
    seen: list[Tensor] = []
    handle = table.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        explained.scores(model, input_ids=ids_1L)
    finally:
        handle.remove()
    if not seen or seen[0].shape[:2] != ids_1L.shape:
        raise UserError(f"{type(model).__name__} does not read its embedding table token by token")
    return seen[0].detach()


@contextmanager
def _first_output(table: nn.Module, embeds_BLD: Tensor) -> Iterator[None]:
    """Replace what the table gives the first time in a pass: an encoder reads before its decoder does."""
    replaced: list[bool] = []

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if replaced:
            return None
        replaced.append(True)
        return embeds_BLD

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
