"""k-means with no dead code: every centroid is the nearest one of some vector it was fitted on."""

from __future__ import annotations

import warnings

import numpy as np

POINTS_PER_CENTROID = 256  # more do not move the centroids noticeably


def nearest(vectors: np.ndarray, centroids: np.ndarray, chunk: int = 65536) -> np.ndarray:
    """Index of the nearest centroid per vector: [n, D], [k, D] -> int64 [n]. Ties go to the lower index."""
    half_norms = 0.5 * (centroids**2).sum(axis=1)
    parts = [
        np.argmax(vectors[start : start + chunk] @ centroids.T - half_norms, axis=1)
        for start in range(0, len(vectors), chunk)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def kmeans(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Centroids float32 [k', D] by k-means++ and Lloyd; k' < k only where there are fewer distinct vectors."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = np.asarray(vectors, dtype=np.float32)
    if len(points) > k * POINTS_PER_CENTROID:
        rows = np.random.default_rng(seed).choice(len(points), k * POINTS_PER_CENTROID, replace=False)
        points = points[np.sort(rows)]
    k = min(k, len(np.unique(points, axis=0)))
    if k == 1:
        return points.mean(axis=0, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked for: dropped below
        fitted = KMeans(k, n_init=1, max_iter=50, random_state=seed).fit(points)
    centroids = fitted.cluster_centers_.astype(np.float32)
    return centroids[np.unique(nearest(points, centroids))]
