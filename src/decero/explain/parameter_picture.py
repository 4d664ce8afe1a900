"""Draw the parameters of a model by part, to scale."""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from decero.errors import write_error
from decero.evaluation.figures import COLOURS, style
from decero.explain.dimensions import Inspection
from decero.explain.parameter_parts import PARTS
from decero.explain.stack_sizes import Size, written
from decero.files import write_whole
from decero.formatting import count

IN_TITLE = {
    "hidden_size": "hidden size", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "num_key_value_heads": "key-value heads", "intermediate_size": "feed-forward size",
}  # fmt: skip
COLOUR_OF = dict(zip(PARTS, (*COLOURS[:6], "#999999"), strict=True))  # a part has the same colour in all pictures


def draw_parts(found: Inspection) -> Figure:
    """Draw a bar a part, with its number and its share."""
    parts = found.parts
    with style():
        figure = Figure(figsize=(7.2, 1.5 + 0.42 * len(parts)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(parts), list(parts.values()), color=[COLOUR_OF[part] for part in parts], height=0.7)
        for place, (part, number) in enumerate(parts.items()):
            axes.text(number, place, f" {count(number)}  ({found.share(part)})", va="center", ha="left")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.28 * max(parts.values()))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        name = found.name.rstrip("/").replace("$", r"\$")
        figure.suptitle(f"{name}: {found.parameters:,} parameters", x=0.01, ha="left", fontsize=12)
        axes.set_title("\n".join(map(_summary, found.dimensions.items())), loc="left", fontsize=9, color="#555555")
    return figure


def _summary(stack: tuple[str, dict[str, Size]]) -> str:
    """Return the sizes of a stack in one line."""
    name, sizes = stack
    words = [f"{label} {written(sizes[size])}" for size, label in IN_TITLE.items() if size in sizes]
    return ", ".join(words) if name == "model" else f"{name}: {', '.join(words)}"


def save_picture(found: Inspection, path: Path) -> None:
    """Write the picture as .png (300 dpi) or .svg (text stays text); equal models give equal bytes.

    Raises UserError for a model whose parameters are not known, and WriteError for a file that cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure = draw_parts(found)
        figure.savefig(
            buffer, format=kind, dpi=300, facecolor="white", metadata={"Date": None} if kind == "svg" else None
        )
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise write_error(error, "cannot write ") or error from error  # the error names the path
