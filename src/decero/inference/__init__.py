"""What a model is for, ours or stock: `translate`, `summarize`, `generate`, `fill` and `classify`, text by text.

Each takes a model (a folder, a name on the hub, package:NAME/FOLDER, or what `load` gave) and texts, and returns an
iterator over one answer a text, in order, which reads on only as far as it is asked.
"""

from decero.inference.fill_mask import Filled, fill
from decero.inference.generation import generate, summarize, translate
from decero.inference.loading import Loaded, load
from decero.inference.text_classification import classify

__all__ = ["Filled", "Loaded", "classify", "fill", "generate", "load", "summarize", "translate"]
