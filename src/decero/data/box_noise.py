"""Noised copies of objects, for denoising queries: a pure function of (seed, epoch, row)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BoxNoise:
    """Draw copies of the objects of a picture that are a little wrong: DN-DETR, Li et al. 2022, section 4.1.

    groups: copies of each object. box_noise: the centre moves by up to this share of half a side, and sides grow or
    shrink by up to this share. class_noise: share of copies whose class is drawn anew. num_labels: number of classes.
    """

    groups: int
    box_noise: float
    class_noise: float
    num_labels: int
    seed: int = 0

    def draw(
        self, boxes_T4: np.ndarray, classes_T: np.ndarray, epoch: int, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes (groups, objects, 4) and classes (groups, objects) for row `index` in an epoch.

        boxes_T4: centre and size as shares of the picture, (objects, 4). Centres of copies stay inside of the picture;
        their sides may reach beyond it.
        """
        rng = np.random.default_rng([self.seed, epoch, index, 2])  # 2: another stream than that of the window
        shape = self.groups, len(boxes_T4)
        shift_GT2, growth_GT2 = (rng.uniform(-self.box_noise, self.box_noise, (*shape, 2)) for _ in range(2))
        centre_T2, size_T2 = boxes_T4[:, :2], boxes_T4[:, 2:]
        boxes_GT4 = np.concatenate([centre_T2 + shift_GT2 * size_T2 / 2, size_T2 * (1 + growth_GT2)], axis=-1)
        other_GT = rng.integers(0, self.num_labels, shape)
        classes_GT = np.where(rng.random(shape) < self.class_noise, other_GT, classes_T)
        return boxes_GT4.clip(0, 1), classes_GT
