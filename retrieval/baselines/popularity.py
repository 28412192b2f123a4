"""The same list for everybody: what most people liked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.baselines.base import popularity
from retrieval.ranking import Ranked, check_allowed, check_histories, liked_part, rank


class Popularity:
    name = "popularity"

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
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
        histories = check_histories(histories, len(self.counts))
        liked_part(histories, preferences)  # for its checks: everybody gets the same list
        scores = np.broadcast_to(self.counts, (len(histories), len(self.counts)))
        allowed = check_allowed(allowed, len(self.counts))
        return rank(scores, k, allowed=allowed, hidden=histories if hide_history else None)
