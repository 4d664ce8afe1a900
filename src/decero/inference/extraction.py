"""Find entities, or the class of each word, with a model that labels words. Fine-tuning answers with the same code."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from decero.data.tag_schemes import as_bioes, best_tags, find_scheme, read_spans
from decero.data.word_rows import SPLITTERS, Bounds, Window, WordWindows, segment_ids
from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.execution.word_objective import WordCollator, word_collator
from decero.inference.chunking import FIRST_WINDOW, Warn, checked_texts, in_order, windows
from decero.inference.decode import quiet
from decero.inference.decoding_plan import batches_by_length
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH
from decero.inference.text_classification import names_of

Entity = dict[str, Any]  # text, label, start, end (characters), score
LONGEST = 512  # tokens of a window, where neither model nor checkpoint say


@dataclass
class Tagging:
    """How a model labels words; recorded in its configuration by fine-tuning.

    scheme: of its tags. words: `text`, or `tokens` where it was trained on given words. max_length, stride: of windows.
    """

    scheme: str
    words: str
    max_length: int
    stride: int | None

    def write(self, config: Any) -> None:
        """Record it in the configuration of a model."""
        config.tagging = asdict(self)

    @classmethod
    def of(cls, loaded: Loaded) -> "Tagging":
        """Return what a model records. Of a foreign model it is guessed.

        B- and I- are then read as IOB1, which forgives, and BILOU as BIOES.

        Raises UserError for a damaged record.
        """
        config, positions = loaded.model.config, loaded.positions()
        found = cls.recorded(config, loaded.name)
        if found is None:
            scheme = find_scheme([[name] for name in as_bioes(names_of(config, config.num_labels or 0))])
            return cls("IOB1" if scheme == "BIO" else scheme, "tokens", min(LONGEST, positions or LONGEST), None)
        found.max_length = min(found.max_length, positions or found.max_length)
        return found

    @classmethod
    def recorded(cls, config: Any, name: str) -> "Tagging | None":
        """Return the record in a model's configuration; None without one. Raises UserError for a damaged one."""
        recorded = getattr(config, "tagging", None)
        if recorded is None:
            return None
        try:
            found = cls(**recorded)
            sizes = [found.max_length, found.max_length if found.stride is None else found.stride]
            known = found.scheme in ("BIO", "IOB1", "BIOES", "none") and found.words in SPLITTERS
            if not known or any(type(size) is not int or size < 0 for size in sizes):
                raise TypeError
        except TypeError:
            raise UserError(f"{name}: config.json: the entry tagging is damaged; remove it, or train again") from None
        return found


def extract(
    model: str | Path | Loaded, texts: Iterable[str], *, batch_tokens: int = TOKENS_PER_BATCH, words: bool = False,
    warn: Warn = silent, first_window: int = FIRST_WINDOW,
) -> Iterator[list[Entity]]:  # fmt: skip
    """Yield the entities of each text: {text, label, start, end, score}, in order; [] for none.

    start, end: characters, counted from 0. score: the mean probability of the entity's tags. A model whose tags are
    classes of words (parts of speech) gives every word. A long text is read in overlapping windows.
    words: the texts are words with spaces between; otherwise words are found as in fine-tuning.

    Raises UserError as `load` does, for a slow tokenizer, and for logits that are not finite.
    """
    loaded = load(model, "extract")
    if not loaded.tokenizer.is_fast:
        raise UserError(f"{loaded.name}: its tokenizer does not say where its tokens are in the text; use a fast one")
    return _extract(loaded, Tagging.of(loaded), texts, batch_tokens, words, first_window)


def _extract(loaded: Loaded, tagging: Tagging, texts, batch_tokens, words, first_window) -> Iterator[list[Entity]]:
    split = SPLITTERS["spaces" if words else tagging.words]
    cut = WordWindows(loaded.tokenizer, tagging.max_length, tagging.stride)
    names = as_bioes(names_of(loaded.model.config, loaded.model.config.num_labels or 0))
    collate, kinds = word_collator(loaded.model, loaded.tokenizer), segment_ids(loaded.tokenizer)
    with prepacked_weights(loaded.model):
        for some in windows(checked_texts(texts), first_window):
            bounds_of = [split(text) for text in some]
            rows_of = list(cut(some, bounds_of))
            rows = [row for each in rows_of for row in each]
            numbers = iter(range(len(rows)))
            pieces_of = [[next(numbers) for _ in each] for each in rows_of]
            batches = batches_by_length([len(row.input_ids) for row in rows], [0] * len(rows), batch_tokens)
            done = ((batch, _read(loaded, collate, kinds, [rows[i] for i in batch])) for batch in batches)
            answers = in_order(pieces_of, done)
            for text, bounds, its_rows, found in zip(some, bounds_of, rows_of, answers, strict=True):
                if not found:
                    yield []
                    continue
                order = np.argsort(np.concatenate([row.words for row in its_rows]))
                yield answer_of(text, bounds, np.concatenate(found)[order], names, tagging.scheme)[1]


@torch.no_grad()
def _read(loaded: Loaded, collate: WordCollator, kinds: Any, rows: Sequence[Window]) -> list[np.ndarray]:
    """Return the log-probabilities of the scored words of each row, (words, tags)."""
    inputs = [{"input_ids": row.input_ids.tolist()} for row in rows]
    if kinds is not None:
        inputs = [each | {"token_type_ids": kinds(len(each["input_ids"])).tolist()} for each in inputs]
    with quiet():  # transformers would advise to pad while tokenizing, but rows are sorted later
        batch = collate(inputs)
    logits_BLC = loaded.model(**{name: each.to(loaded.model.device) for name, each in batch.items()}).logits
    found = []
    for row, mask_L, logits_LC in zip(rows, batch["attention_mask"], logits_BLC.double().cpu(), strict=True):
        logits_WC = logits_LC[mask_L.bool()][torch.from_numpy(row.places)].numpy()
        if not np.isfinite(logits_WC).all():
            raise UserError(f"{loaded.name}: the model computes NaN or infinity; use another model")
        found.append(log_softmax(logits_WC, axis=1))
    return found


def answer_of(
    text: str, bounds: Bounds, log_probability_WC: np.ndarray, names: Sequence[str], scheme: str
) -> tuple[list[str], list[Entity]]:
    """Return the tag of each word and the entities of a text.

    bounds: the characters of its words. log_probability_WC: (words, tags). names: of the tags.
    """
    ids = best_tags(log_probability_WC, names, scheme)
    tags = [names[i] for i in ids]
    scores = np.exp(log_probability_WC[np.arange(len(ids)), ids])
    spans = [(w, w + 1, tag) for w, tag in enumerate(tags)] if scheme == "none" else read_spans(tags, scheme)
    entities = []
    for first, behind, label in spans:
        start, end = bounds[first][0], bounds[behind - 1][1]
        score = float(scores[first:behind].mean())
        entities.append({"text": text[start:end], "label": label, "start": start, "end": end, "score": score})
    return tags, entities
