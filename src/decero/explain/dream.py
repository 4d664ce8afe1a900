"""Change a picture until a class, or a head of attention, answers strongly: Mordvintsev et al. 2015 (Deep Dream)."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from decero.data.images import to_pixels
from decero.errors import UserError, did_you_mean
from decero.explain.capture import editing, frozen, unchanged
from decero.explain.chapters import view_of
from decero.explain.phrases import phrases
from decero.explain.pictures import style
from decero.explain.views import Curves, Drawing, Panel, Table, View, printable
from decero.inference.image_answers import LoadedPictures
from decero.inference.text_classification import names_of

STEPS = 128
SHOWN = (0, 4, 16, 64, STEPS)  # steps whose pictures are drawn
RATE = 0.03  # of a step at first, in units of the range of pixels; it falls to a tenth
SMOOTH = 0.5  # weight of the gradient of roughness beside that of the goal, which has size 1
NOISE = 0.1  # deviation of the pixels of a start from noise
MOST_SHOWN = 5  # classes in the table


@dataclass(frozen=True)
class Goal:
    """Name the number that a dream raises: the logit of a class, or the size of the output of a head.

    label: name of a class; None, without a layer: the class that the model gives the picture. layer, head: from 0; no
    head means all heads of the layer. seed: of the random shifts.
    """

    label: str | None = None
    layer: int | None = None
    head: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Dream:
    """Hold what was found. frames: step -> picture, float32 (height, width, channels) in [0, 1].

    values: of the goal before each step and at the end. before, after: probability of each class.
    """

    frames: dict[int, np.ndarray]
    values: np.ndarray
    before: np.ndarray
    after: np.ndarray
    jitter: int

    @property
    def picture(self) -> np.ndarray:
        """The last frame."""
        return self.frames[max(self.frames)]


def noise_picture(loaded: LoadedPictures, seed: int) -> Image.Image:
    """Return grey noise of the model's own size, drawn from the seed."""
    draw = np.random.default_rng([seed, 0]).normal(0.5, NOISE, (*loaded.pixels.size, loaded.pixels.channels))
    values = (draw.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(values[..., 0] if loaded.pixels.channels == 1 else values)


def dream(loaded: LoadedPictures, picture: Image.Image, goal: Goal, steps: int = STEPS) -> Dream:
    """Climb the gradient of the goal from a picture, in steps of equal size.

    The result depends only on the model, the picture, the goal and the number of steps. Each step shifts the picture at
    random, so that the borders of patches have no effect. It also smooths the picture a little by total variation
    (Mahendran & Vedaldi 2015, section 3.2, with beta 2), so that single pixels have little effect. Weights do not
    change.

    Raises UserError for an unknown class, for a layer or head that is not there, and for a model that is no classifier.
    """
    pixels, model = loaded.pixels, loaded.model
    start = to_pixels(picture, pixels.size, pixels.channels, "picture", pixels.resample)
    x_1CYX = torch.from_numpy(start.astype(np.float32) / 255).movedim(-1, 0)[None].to(model.device)
    jitter = max(1, min(pixels.size) // 14)
    rng = np.random.default_rng([goal.seed, 1])
    frames, values = {0: _as_picture(x_1CYX)}, []
    with unchanged(model), frozen(model):
        before = probabilities_of(loaded, x_1CYX)
        target = class_of(loaded, goal.label, before) if goal.layer is None else 0
        for step in range(1, steps + 1):
            shift = tuple(rng.integers(-jitter, jitter + 1, 2).tolist())
            x_1CYX = x_1CYX.detach().requires_grad_()
            (uphill,) = torch.autograd.grad(_value(loaded, x_1CYX.roll(shift, dims=(-2, -1)), goal, target), x_1CYX)
            (rougher,) = torch.autograd.grad(total_variation(x_1CYX), x_1CYX)
            values.append(float(_value(loaded, x_1CYX.detach(), goal, target)))
            rate = RATE * (1 - 0.9 * (step - 1) / steps)
            direction = uphill / (uphill.square().mean().sqrt() + 1e-12) - SMOOTH * rougher
            x_1CYX = (x_1CYX.detach() + rate * direction).clamp(0, 1)
            if step in SHOWN or step == steps:
                frames[step] = _as_picture(x_1CYX)
        values.append(float(_value(loaded, x_1CYX, goal, target)))
        after = probabilities_of(loaded, x_1CYX)
    return Dream(frames, np.array(values), before, after, jitter)


def total_variation(x_1CYX: Tensor) -> Tensor:
    """Return half of the sum of squared differences of neighbouring pixels, down and across."""
    return (x_1CYX.diff(dim=-2).square().sum() + x_1CYX.diff(dim=-1).square().sum()) / 2


def class_of(loaded: LoadedPictures, label: str | None, answers: np.ndarray) -> int:
    """Return the number of a class by its name; without a name the likeliest. Raises UserError for an unknown name."""
    if label is None:
        return int(answers.argmax())
    names = names_of(loaded.model.config, len(answers))
    if label not in names:
        known = did_you_mean(label, names) or f"; known: {', '.join(names[:20])}"
        raise UserError(f"--target {label}: {loaded.name} has no such class{known}")
    return names.index(label)


@torch.no_grad()
def probabilities_of(loaded: LoadedPictures, x_1CYX: Tensor) -> np.ndarray:
    """Return the probability of each class. Raises UserError for a model without classes of whole pictures."""
    logits = getattr(loaded.model(pixel_values=_normalized(loaded, x_1CYX)), "logits", None)
    if logits is None or logits.dim() != 2:  # of pixels or boxes, or of masked patches
        raise UserError(
            f"--view dream: {loaded.name} gives no classes of whole pictures; take a classifier, or --view rollout"
        )
    return logits[0].float().softmax(-1).cpu().numpy()


def dream_view(loaded: LoadedPictures, picture: Image.Image, goal: Goal, language: str) -> View:
    """Return the chapter `dream`: pictures on the way, the curve, and what the model says before and after.

    Raises UserError as `dream` does.
    """
    w = phrases(language)
    found = dream(loaded, picture, goal, STEPS)
    names = [printable(name) for name in names_of(loaded.model.config, len(found.before))]
    if goal.layer is None:
        what = w["dream_class"].format(name=names[class_of(loaded, goal.label, found.before)])
    elif goal.head is None:
        what = w["dream_layer"].format(layer=goal.layer)
    else:
        what = w["dream_head"].format(layer=goal.layer, head=goal.head)
    order = np.argsort(-np.maximum(found.before, found.after), kind="stable")[:MOST_SHOWN]
    rows = [[names[i], float(found.before[i]), float(found.after[i])] for i in order]
    title = what[0].upper() + what[1:]
    panels: list[Panel] = [
        Drawing(w["picture_dream"], draw_frames(found, language)),
        Curves(w["dream_rise"].format(goal=title), [what], list(range(len(found.values))), found.values[None],
               w["dream_steps"], what),
        Table(w["dream_answers"], [w["dream_label"], w["dream_before"], w["dream_after"]], rows),
    ]  # fmt: skip
    return view_of("picture_dream", language, panels, steps=STEPS, goal=what, jitter=found.jitter)


def draw_frames(found: Dream, language: str) -> Figure:
    """Draw the pictures on the way, from left to right."""
    tall = found.picture.shape[0] / found.picture.shape[1]
    with style():
        figure = Figure(figsize=(1.6 * len(found.frames), 1.6 * tall + 0.25), layout="constrained")
        places = figure.subplots(1, len(found.frames), squeeze=False).flat
        for axes, (step, frame) in zip(places, found.frames.items(), strict=True):
            axes.set_axis_off()
            shown = frame[..., 0] if frame.shape[-1] == 1 else frame
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="none")
            axes.set_title(phrases(language)["dream_step"].format(step=step), fontsize=7, pad=2)
    return figure


def _value(loaded: LoadedPictures, x_1CYX: Tensor, goal: Goal, target: int) -> Tensor:
    """Return the number that the dream raises."""
    inputs = _normalized(loaded, x_1CYX)
    if goal.layer is None:
        return loaded.model(pixel_values=inputs).logits[0, target]
    mixes: list[Tensor] = []

    def keep(call: int, mix_BLHK: Tensor) -> Tensor:
        mixes.append(mix_BLHK)
        return mix_BLHK

    with editing(loaded.model, keep):
        loaded.model(pixel_values=inputs)
    if not goal.layer < len(mixes):
        raise UserError(f"--layer {goal.layer}: there are {len(mixes)} layers of attention, from 0 to {len(mixes) - 1}")
    mix_LHK = mixes[goal.layer][0]
    heads = mix_LHK.shape[1]
    if goal.head is not None and goal.head >= heads:
        raise UserError(f"--head {goal.head}: there are {heads} heads in a layer, from 0 to {heads - 1}")
    chosen = mix_LHK if goal.head is None else mix_LHK[:, goal.head]
    return chosen.square().mean().sqrt()


def _normalized(loaded: LoadedPictures, x_1CYX: Tensor) -> Tensor:
    mean, std = (x_1CYX.new_tensor(each)[:, None, None] for each in (loaded.pixels.mean, loaded.pixels.std))
    return ((x_1CYX - mean) / std).to(loaded.model.dtype)


def _as_picture(x_1CYX: Tensor) -> np.ndarray:
    return x_1CYX.detach()[0].movedim(0, -1).cpu().numpy().astype(np.float32)
