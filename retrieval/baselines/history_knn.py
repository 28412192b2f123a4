"""Draw items of the history, show their neighbours: no training at all, and every taste gets its share.

A diffusion prior that samples what a person would love has to beat this: drawn events are exact samples of the taste
shown so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from retrieval.baselines.base import popularity
from retrieval.grounding import ground
from retrieval.index import VectorIndex
from retrieval.ranking import Ranked, check_allowed, check_histories, liked_part, rank


class HistoryKNN:
    """`draws` events are drawn from the liked part of the history and grounded like the seeds of a prior.

    decay: an event counts decay ** (events since). The list is drawn, not scored: its scores are 1, 1/2, 1/3, ...
    A person without a liked event gets the popular items.
    """

    name = "history_knn"

    def __init__(self, draws: int = 32, decay: float = 0.95) -> None:
        self.draws = draws
        self.decay = decay

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.index = VectorIndex.build(vectors)
        self.counts = popularity(histories, preferences, len(vectors))
        self.seed = seed

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        items = len(self.index)
        histories = check_histories(histories, items)
        allowed = check_allowed(allowed, items)
        hidden = histories if hide_history else None
        found, _ = rank(np.broadcast_to(self.counts, (len(histories), items)), k, allowed=allowed, hidden=hidden)
        for row, liked in enumerate(liked_part(histories, preferences)):
            if len(liked) == 0:
                continue
            random = np.random.default_rng(
                [self.seed, crc32(liked.tobytes())]
            )  # the person's own, whoever else is asked
            weights = self.decay ** np.arange(len(liked))[::-1]
            drawn = random.choice(liked, self.draws, p=weights / weights.sum())
            seeds, times = np.unique(drawn, return_counts=True)
            exclude = histories[row] if hide_history else None
            found[row] = ground(self.index.vectors(seeds), times, self.index, k, exclude, allowed).items
        scores = np.where(found >= 0, 1.0 / np.arange(1, k + 1), -np.inf).astype(np.float32)
        return found, scores
