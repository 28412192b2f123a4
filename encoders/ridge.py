"""Ridge regression whose strength is chosen by generalized cross-validation (Golub, Heath & Wahba 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRENGTHS = np.geomspace(1e-3, 1e5, 33)  # in units of the mean variance of the source
CHUNK = 8192


@dataclass(frozen=True)
class Ridge:
    """`weights` float64 [a, b]; `r2` is the share of the target's energy it is expected to explain on new rows."""

    weights: np.ndarray
    r2: float


def fit_ridge(source: np.ndarray, target: np.ndarray) -> Ridge:
    """Least squares from [n, a] to [n, b] without intercept (centre both before). Works for n < a and for 10^6 rows."""
    n, a = source.shape
    gram = np.zeros((a, a))
    cross = np.zeros((a, target.shape[1]))
    energy = 0.0
    for start in range(0, n, CHUNK):
        x = source[start : start + CHUNK].astype(np.float32)
        y = target[start : start + CHUNK].astype(np.float32)
        gram += x.T @ x  # summed in float64 over chunks
        cross += x.T @ y
        energy += float((y.astype(np.float64) ** 2).sum())
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0)
    cross = vectors.T @ cross  # [a, b], in the eigenbasis
    strength = (cross**2).sum(axis=1)  # [a]
    best = (np.inf, 0.0)
    for alpha in STRENGTHS * max(float(values.mean()), 1e-12):
        shrunk = 1 / (values + alpha)
        residual = energy - 2 * (strength * shrunk).sum() + (strength * shrunk**2 * values).sum()
        free = n - (values * shrunk).sum()
        best = min(best, (n * max(residual, 0.0) / max(free, 1e-9) ** 2, alpha))
    score, alpha = best
    weights = vectors @ (cross / (values + alpha)[:, None])
    return Ridge(weights, float(1 - score / (energy / n)) if energy else 0.0)
