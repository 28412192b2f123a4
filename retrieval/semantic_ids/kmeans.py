"""k-means with no dead code: every centroid is the nearest one of some vector it was fitted on."""

from __future__ import annotations

import warnings

import numpy as np

# Of a large catalog a sample is clustered: POINTS, or FEWEST for each centroid where that is more (FAISS warns below
# 39), and never more than MOST for each, which do not move the centroids noticeably.
POINTS, FEWEST, MOST = 1 << 16, 64, 256
POINTS_PER_START = 4


def nearest(vectors: np.ndarray, centroids: np.ndarray, chunk: int = 65536) -> np.ndarray:
    """Index of the nearest centroid per vector: [n, D], [k, D] -> int64 [n]. Ties go to the lower index."""
    half_norms = 0.5 * (centroids**2).sum(axis=1)
    parts = [
        np.argmax(vectors[start : start + chunk] @ centroids.T - half_norms, axis=1)
        for start in range(0, len(vectors), chunk)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def kmeans(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Centroids float32 [k', D] by Lloyd; k' < k only where there are fewer distinct vectors.

    Two starts are tried and the better kept. k-means++ (Arthur & Vassilvitskii 2007, section 2.2) finds clusters where
    there are any. What the last levels of a residual quantizer see is closer to noise, where single points lie farther
    from everything than the mean does: one centroid near the mean then takes almost all vectors (measured: .3 of 8 bits
    of entropy, every code formally in use). Means of a few random points are short and even and avoid that.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning

    random = np.random.default_rng(seed)
    points = np.asarray(vectors, dtype=np.float32)
    enough = min(MOST * k, max(FEWEST * k, POINTS))
    if len(points) > enough:
        points = points[np.sort(random.choice(len(points), enough, replace=False))]
    k = min(k, len(np.unique(points, axis=0)))
    if k == 1:
        return points.mean(axis=0, keepdims=True)
    groups = np.array_split(random.permutation(len(points))[: POINTS_PER_START * k], k)
    starts = [
        kmeans_plusplus(points, k, random_state=seed, n_local_trials=1)[0],
        np.stack([points[group].mean(axis=0) for group in groups]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked for: dropped below
        tries = [KMeans(k, init=start, n_init=1, max_iter=20).fit(points) for start in starts]
    best = min(tries, key=lambda fitted: fitted.inertia_)
    centroids = best.cluster_centers_.astype(np.float32)
    return centroids[np.unique(nearest(points, centroids))]
