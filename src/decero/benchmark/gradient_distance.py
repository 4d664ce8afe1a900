"""Measure how much of the gradient of the last output reaches the input, step by step back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from decero.benchmark.side_by_side import at_once, together
from decero.benchmark.synthetic_runs import build_arm, cached_rows, fit, folder_of, kept, summary_of, task_of
from decero.config.long_range import GradientsWork
from decero.data.synthetic import collate_aligned
from decero.training.runs import Run


def gradient_by_distance(apply: Callable[[Tensor], Tensor], inputs_BLD: Tensor, directions_BD: Tensor) -> list[float]:
    """Return the norm of the gradient of the last output with respect to the input d steps back, for d = 0, 1, ...

    apply: (batch, length, model) -> (batch, length, model). directions_BD: unit vectors; the output is projected on
    them, so that one backward pass gives a random row of each Jacobian. Root of the mean square over the batch.
    """
    inputs_BLD = inputs_BLD.detach().requires_grad_()
    projected = (apply(inputs_BLD)[:, -1] * directions_BD).sum()
    (gradient_BLD,) = torch.autograd.grad(projected, inputs_BLD)
    return gradient_BLD.pow(2).sum(dim=-1).mean(dim=0).sqrt().flip(0).tolist()


def measure_gradients(model: PreTrainedModel, input_ids: Tensor, seed: int) -> list[float]:
    """Return `gradient_by_distance` of a decoder below its head, in double precision: float32 ends at 1e-45."""
    was_training, dtype = model.training, model.dtype
    model.eval().double()
    embeds_BLD = model.get_input_embeddings()(input_ids)
    draw = torch.Generator().manual_seed(seed)
    directions_BD = torch.randn(embeds_BLD.shape[0], embeds_BLD.shape[2], generator=draw, dtype=torch.double)
    directions_BD = torch.nn.functional.normalize(directions_BD, dim=-1).to(embeds_BLD.device)
    norms = gradient_by_distance(
        lambda inputs_BLD: model.base_model(inputs_embeds=inputs_BLD).last_hidden_state, embeds_BLD, directions_BD
    )
    model.to(dtype=dtype).train(was_training)  # type: ignore[call-arg]
    return norms


def gradient_runs(run: Run, work: GradientsWork, tick: Callable[[str], Any]) -> dict[str, Any]:
    """Measure every arm and seed before and after training on selective copying.

    tick: called with a line after each. Returns the part of result.json of the experiment.
    """
    arms = run.config.shapes(work)

    def tell(record: dict[str, Any]) -> None:
        tick(f"gradients, {record['arm']}, seed {record['seed']}: done")

    pairs = [(arm, seed) for arm in arms for seed in work.seeds]
    records = together(run, gradient_record, pairs, tell, at_once(run))
    found = {arm: [record for record in records if record["arm"] == arm] for arm in arms}
    return {"arms": found, "distances": work.distances}


def gradient_record(run: Run, arm: str, seed: int) -> dict[str, Any]:
    """Return the record of an arm and a seed, which is kept in a file: gradients before and after training."""
    work = run.config.gradients
    task: Any = task_of("gradients", work)
    arms = run.config.shapes(work)
    folder = folder_of(run, "gradients", arms, arm, seed, None)

    def make() -> dict[str, Any]:
        model = build_arm(arm, arms[arm], task.vocab_size, task.length, seed).to(run.accelerator.device)  # type: ignore[arg-type]
        test = cached_rows(task, "test", seed, work.rows)
        input_ids = collate_aligned(list(test))["input_ids"].to(run.accelerator.device)  # type: ignore[arg-type]
        before = measure_gradients(model, input_ids, seed)
        rows = cached_rows(task, "train", seed, work.train_rows)
        result = fit(run, folder, model, rows, work, seed, work.learning_rate)
        after = measure_gradients(result.model, input_ids, seed)
        at = {"before": before, "after": after}
        return {"seed": seed, **{name: [all_d[d] for d in work.distances] for name, all_d in at.items()}} | summary_of(
            result
        )

    return kept(folder / "result.json", make) | {"arm": arm}
