"""Run a decero or stock model on texts.

The functions are `translate`, `summarize`, `generate`, `fill`, `classify`, `extract`, `answer` and `score`.
Each function takes a model and an iterable of texts. The model is a folder, a name on the hub, package:NAME/FOLDER, or
the result of `load`. `answer` takes pairs (question, context). Each returns an iterator with one answer per text, in
order. Texts are read lazily, one window at a time.
"""

from decero.inference.conversation import Conversation
from decero.inference.extraction import extract
from decero.inference.fill_mask import Filled, fill
from decero.inference.generation import generate, summarize, translate
from decero.inference.loading import Loaded, commands_of, load
from decero.inference.question_answers import Answer, answer
from decero.inference.text_classification import classify, reads_pairs
from decero.inference.text_scores import TextScore, score

__all__ = [
    "Answer",
    "Conversation",
    "Filled",
    "Loaded",
    "TextScore",
    "answer",
    "classify",
    "commands_of",
    "extract",
    "fill",
    "generate",
    "load",
    "reads_pairs",
    "score",
    "summarize",
    "translate",
]  # fmt: skip
