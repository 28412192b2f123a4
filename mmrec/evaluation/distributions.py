"""How well a set of vectors stands for a taste: one number per person, or one for everybody together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDWIDTH = 1 / np.sqrt(2)
"""Of the kernel of `cmmd`: vectors of unit length lie at most 2 apart, unrelated ones about sqrt(2)."""


def energy_score(samples: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Energy score of each person's sample [n, D] as a forecast of the vectors [m, D] held out: float64 [B].

    mean |X - y| - mean |X - X'| / 2 (Gneiting & Raftery 2007, eq. 22), over all pairs, X with itself too: what is
    judged is the distribution of the n vectors as it was handed over. Strictly proper; lower is better; NaN where
    either is empty.
    """
    scores = np.full(len(samples), np.nan)
    for row, (x, y) in enumerate(zip(samples, targets, strict=True)):
        if len(x) and len(y):
            scores[row] = _distances(x, y).mean() - _distances(x, x).mean() / 2
    return scores


def vendi(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Vendi score (Friedman & Dieng 2023, definition 3.1) of each set of unit vectors [n, D] under the cosine kernel:
    how many wholly different ones it is worth, float64 [B] in [1, n]; NaN for an empty one."""
    scores = np.full(len(samples), np.nan)
    for row, x in enumerate(samples):
        if len(x):
            values = np.linalg.eigvalsh((x @ x.T).astype(np.float64) / len(x))
            values = values[values > 1e-12]
            scores[row] = np.exp(-(values * np.log(values)).sum())
    return scores


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """1000 times the squared maximum mean discrepancy of two sets of unit vectors, unbiased, under a Gaussian kernel
    (Jayasumana et al. 2024, "Rethinking FID", section 4, whose bandwidth is for CLIP's longer vectors). Lower is
    better."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-(_distances(a, b) ** 2) / (2 * BANDWIDTH**2))

    n, m = len(x), len(y)
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return float(1000 * (within - 2 * kernel(x, y).mean()))


def mauve(x: np.ndarray, y: np.ndarray, seed: int, clusters: int = 40) -> float:
    """MAUVE (Pillutla et al. 2021, section 3.1) of two sets of vectors: the area under the divergence curve over a
    common quantisation by k-means, with half a count added per cluster (Pillutla et al. 2023, section 4). In [0, 1],
    higher is better."""
    from sklearn.cluster import KMeans

    labels = KMeans(clusters, n_init=2, random_state=seed).fit_predict(np.concatenate([x, y]))
    p, q = (
        (np.bincount(part, minlength=clusters) + 0.5) / (len(part) + clusters / 2)
        for part in (labels[: len(x)], labels[len(x) :])
    )
    curve = [(1.0, 0.0), (0.0, 1.0)]
    for weight in np.linspace(0.01, 0.99, 99):
        mixed = weight * p + (1 - weight) * q
        curve.append((np.exp(-5 * (q * np.log(q / mixed)).sum()), np.exp(-5 * (p * np.log(p / mixed)).sum())))
    points = np.array(sorted(curve))
    return float(np.trapezoid(points[:, 1], points[:, 0]))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m]."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))
