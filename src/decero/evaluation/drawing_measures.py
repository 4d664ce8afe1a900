"""Measure drawn pictures: distance of distributions, copies of training pictures, balance of classes."""

import numpy as np

BLOCK = 256  # drawn pictures at a time


def frechet_distance(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """Return the Frechet distance of two Gaussians that are fitted to features (Dowson & Landau 1982, eq. 4).

    It is |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as in the FID of Heusel et al. 2017, with other features. With few
    rows it is too large, so compare it only for the same numbers of rows. Raises ValueError below 2 rows.
    """
    if min(len(first_ND), len(second_MD)) < 2:
        raise ValueError("give at least 2 rows of features")
    first_ND, second_MD = first_ND.astype(np.float64), second_MD.astype(np.float64)
    apart = first_ND.mean(axis=0) - second_MD.mean(axis=0)
    first_DD, second_DD = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (first_ND, second_MD))
    values, vectors = np.linalg.eigh(first_DD)
    root_DD = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # C1 C2 has the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, so no complex root arises
    shared = np.sqrt(np.linalg.eigvalsh(root_DD @ second_DD @ root_DD).clip(min=0)).sum()
    return float(max(0.0, apart @ apart + np.trace(first_DD) + np.trace(second_DD) - 2 * shared))


def nearest_rows(wanted_NP: np.ndarray, known_MP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each picture the row of the nearest known one, and the root mean square difference of their pixels.

    wanted_NP, known_MP: uint8, one flattened picture a row.
    """
    known_MP = known_MP.astype(np.float32)
    squares_M = (known_MP.astype(np.float64) ** 2).sum(axis=1)
    rows, distances = [], []
    for start in range(0, len(wanted_NP), BLOCK):
        block = wanted_NP[start : start + BLOCK].astype(np.float32)
        found = (squares_M - 2.0 * (block @ known_MP.T).astype(np.float64)).argmin(axis=1)
        rows.append(found)
        distances.append(np.sqrt(((block - known_MP[found]).astype(np.float64) ** 2).mean(axis=1)))
    return np.concatenate(rows), np.concatenate(distances)


def shares(predictions: np.ndarray, classes: int) -> list[float]:
    """Return the share of each class among predictions."""
    return (np.bincount(predictions, minlength=classes) / len(predictions)).tolist()
