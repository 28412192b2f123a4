"""Neighbours of the mean of what a person liked: one point for a whole taste."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.baselines.base import below, popularity
from retrieval.index import unit
from retrieval.ranking import Ranked, check_allowed, check_histories, liked_part, rank


class MeanHistory:
    """Ranks items by cosine with the mean vector of the liked events; a person without any gets the popular ones."""

    name = "mean_history"

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.vectors = unit(vectors)
        self.counts = popularity(histories, preferences, len(vectors))

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        items = len(self.vectors)
        histories = check_histories(histories, items)
        means = np.zeros((len(histories), self.vectors.shape[1]), dtype=np.float32)
        for row, liked in enumerate(liked_part(histories, preferences)):
            if len(liked):
                means[row] = self.vectors[liked].mean(axis=0)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        scores = (means / np.maximum(lengths, 1e-12)) @ self.vectors.T
        scores = below(scores.astype(np.float64), self.counts)
        return rank(scores, k, allowed=check_allowed(allowed, items), hidden=histories if hide_history else None)
