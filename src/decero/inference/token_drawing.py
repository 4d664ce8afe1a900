"""Draw with a causal language model that writes a token for each pixel, and measure how well it foresees pictures.

Dimensions: N pictures, B of a batch, T tokens of a prompt, P pixels of a picture, G that are given, V tokens, K colors.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.data.causal import PLAIN, start_id
from decero.data.image_tokens import PICTURE, ImageTokens
from decero.errors import UserError
from decero.inference.sampling import Sampling

AT_ONCE = 32  # pictures of a pass, always: other sizes of matrices round otherwise


class TokenPainter:
    """Draw and score pictures with a causal model, ours or a stock one, and the tokenizer of `tokenize_images`.

    Raises UserError when the model has fewer positions than a picture has pixels.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ImageTokens):
        self.model, self.tokenizer, self.tokens = model, tokenizer, tokens
        self.colors_K = torch.tensor(tokenizer.convert_tokens_to_ids(tokens.characters))
        most = getattr(model.config, "max_position_embeddings", None)
        if isinstance(most, int) and most < tokens.pixels + 2:
            raise UserError(
                f"{tokenizer.name_or_path}: a picture needs {tokens.pixels + 2} positions, and the model has {most}"
            )

    def prompt(self, caption: str) -> list[int]:
        """Return the tokens before the first pixel: start, caption, PICTURE. An empty caption asks for any picture."""
        words = self.tokenizer(caption, **PLAIN)["input_ids"] if caption else []
        return [start_id(self.tokenizer), *words, self.tokenizer.convert_tokens_to_ids(PICTURE)]

    @torch.no_grad()
    def draw(
        self, captions: Sequence[str], *, seed: int = 0, temperature: float = 1.0, top_p: float = 1.0,
        guidance: float = 1.0, given_NG: np.ndarray | None = None, done: Callable[[int], Any] = lambda pictures: None,
    ) -> np.ndarray:  # fmt: skip
        """Draw a picture for each caption and return its colors, uint8 (N, P).

        temperature, top_p: as in `Sampling`. guidance: 1 follows the caption as it was learnt; with w, the logits are
        those without a caption + w * (those with - those without), as in Ho & Salimans 2022, eq. 6. given_NG: the
        colors of the first G pixels of each picture, which stay; one row for all pictures will do. done: called with
        the number of pictures after each pass. Picture i depends on the model, its caption, what is given, `seed` and i
        alone.

        Raises UserError for a guidance that is no number from 0 to 1000, and a model that computes NaN.
        """
        if not 0 <= guidance <= 1000:
            raise UserError(f"guidance {guidance}: give a number from 0 to 1000")
        sampling = Sampling([(seed, number) for number in range(len(captions))], temperature, top_p)
        given_NG = np.zeros((1, 0), np.uint8) if given_NG is None else given_NG
        given_NG = np.broadcast_to(given_NG, (len(captions), given_NG.shape[1]))
        found_NP = np.zeros((len(captions), self.tokens.pixels), np.uint8)
        for rows in self._batches(captions):
            prompts_BT = torch.tensor([self.prompt(captions[row]) for row in rows])
            uniform_BP = sampling.uniform(rows, self.tokens.pixels)
            found_NP[rows] = self._draw(prompts_BT, given_NG[rows], uniform_BP, sampling, guidance)
            done(len(rows))
        return found_NP

    def _draw(
        self, prompts_BT: Tensor, given_BG: np.ndarray, uniform_BP: Tensor, sampling: Sampling, guidance: float
    ) -> np.ndarray:  # fmt: skip
        count, given = given_BG.shape
        rows = torch.arange(AT_ONCE).clamp(max=count - 1)  # the last picture fills the batch
        bare_BT = torch.tensor([self.prompt("")]).expand(count, -1)
        readers = [_Reader(self.model, weight) for weight in (guidance, 1 - guidance)]
        found_BP = torch.zeros(count, self.tokens.pixels, dtype=torch.long)
        found_BP[:, :given] = torch.from_numpy(given_BG.astype(np.int64))
        ids_BG = self.colors_K[found_BP[:, :given]]
        parts = [torch.cat((prompt_BT, ids_BG), dim=1) for prompt_BT in (prompts_BT, bare_BT)]
        for place in range(given, self.tokens.pixels):
            read = [each.weight * each(part[rows]) for each, part in zip(readers, parts, strict=True) if each.weight]
            logits_BV = torch.stack(read).sum(dim=0)
            logits_BK = logits_BV[:count, self.colors_K]
            if not logits_BK.isfinite().all():
                raise UserError("the model computes NaN or infinity, which is no picture; use another one")
            found_BP[:, place] = sampling.pick(logits_BK, uniform_BP[:, place])
            parts = [self.colors_K[found_BP[:, place, None]]] * 2
        return found_BP.numpy().astype(np.uint8)

    def _batches(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """Yield rows whose prompts have the same length, at most AT_ONCE."""
        by_length: dict[int, list[int]] = {}
        lengths = {caption: len(self.prompt(caption)) for caption in set(captions)}
        for row, caption in enumerate(captions):
            by_length.setdefault(lengths[caption], []).append(row)
        for rows in by_length.values():
            for start in range(0, len(rows), AT_ONCE):
                yield rows[start : start + AT_ONCE]

    @torch.no_grad()
    def bits(
        self, captions: Sequence[str], indexes_NP: np.ndarray, batch_size: int,
        done: Callable[[int], Any] = lambda pictures: None,
    ) -> np.ndarray:  # fmt: skip
        """Return the bits of each pixel, float64 (N, P): -log2 p(pixel | start, caption, the pixels before it).

        All entries of the vocabulary share the probability, so a model pays for what it gives to words.
        """
        found_NP = np.zeros(indexes_NP.shape)
        for rows in self._batches(captions):
            for start in range(0, len(rows), batch_size):
                some = rows[start : start + batch_size]
                prompts_BT = torch.tensor([self.prompt(captions[row]) for row in some])
                pixels_BP = self.colors_K[torch.from_numpy(indexes_NP[some].astype(np.int64))]
                ids_BL = torch.cat((prompts_BT, pixels_BP), dim=1).to(self.model.device)
                logits_BPV = self.model(input_ids=ids_BL).logits[:, prompts_BT.shape[1] - 1 : -1].float()
                nats_BP = nn.functional.cross_entropy(logits_BPV.mT, pixels_BP.to(logits_BPV.device), reduction="none")
                found_NP[some] = nats_BP.double().cpu().numpy() / np.log(2)
                done(len(some))
        return found_NP


class _Reader:
    """Read tokens one part after the other and keep what was read (the cache of keys and values)."""

    def __init__(self, model: PreTrainedModel, weight: float):
        self.model, self.weight, self.cache = model, weight, None

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Return the logits after the last token, (B, V), on the CPU."""
        out = self.model(input_ids=ids_BT.to(self.model.device), past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits[:, -1].float().cpu()
