"""What a model is for, ours or stock: `translate`, `summarize`, `generate`, `fill` and `classify`, text by text.

Each takes a model (a folder, a name on the hub, package:NAME/FOLDER, or what `load` gave) and texts, and returns an
iterator over one answer a text, in order, which reads on only as far as it is asked.
"""

from decero.inference.checkpoint import Loaded, load
from decero.inference.holes import Filled, fill
from decero.inference.labels import classify
from decero.inference.write import generate, summarize, translate

__all__ = ["Filled", "Loaded", "classify", "fill", "generate", "load", "summarize", "translate"]
