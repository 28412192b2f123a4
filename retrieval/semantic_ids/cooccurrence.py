"""What the histories say of items: which are used together, and a vector per item made of that alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WINDOW = 20  # two events of one person that lie farther apart do not count as together


def cooccurrence(histories: Sequence[np.ndarray], items: int) -> Any:
    """How often two items stand in one history: a symmetric scipy CSR matrix [items, items] with an empty diagonal."""
    from scipy.sparse import csr_matrix

    pairs = [
        np.stack([history[:-step], history[step:]])
        for history in histories
        for step in range(1, min(WINDOW, len(history) - 1) + 1)
    ]
    a, b = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.int64)
    apart = a != b
    ones = np.ones(int(apart.sum()), np.float64)
    one_way = csr_matrix((ones, (a[apart], b[apart])), shape=(items, items))  # repeated pairs are summed
    return (one_way + one_way.T).tocsr()


def collaborative_vectors(histories: Sequence[np.ndarray], items: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [items, dim] from use alone; zeros for an item that was never used with another.

    Truncated SVD of the positive pointwise mutual information of the co-occurrences (Levy & Goldberg, "Neural Word
    Embedding as Implicit Matrix Factorization", 2014, section 4.2).
    """
    from scipy.sparse.linalg import svds

    counts = cooccurrence(histories, items).tocoo()
    vectors = np.zeros((items, dim), np.float32)
    if counts.nnz == 0:
        return vectors
    of = np.asarray(counts.sum(axis=1)).reshape(-1)
    information = np.log(counts.data * of.sum() / (of[counts.row] * of[counts.col]))
    counts.data = np.maximum(information, 0.0)
    rank = min(dim, items - 1)
    start = np.random.default_rng(seed).standard_normal(items)
    left, weights, _ = svds(counts.tocsr(), k=rank, v0=start)
    vectors[:, :rank] = left * np.sqrt(weights)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
