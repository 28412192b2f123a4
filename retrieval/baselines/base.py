"""What every recommender of the comparison table can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from retrieval.ranking import Ranked, check_histories, liked_part


@runtime_checkable
class Recommender(Protocol):
    name: str

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        """Learn from people's histories (item indices, oldest first), preferences in [-1, 1] (None: all liked) and
        item vectors float32 [N, D]. Disliked items (preference < 0) are no evidence of taste."""

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        """The k best items per history, best first: items int64 [B, k], scores float32 [B, k]; -1 and -inf where fewer
        than k are possible. Everything in the history is hidden, the disliked too; `allowed` is bool [N]."""


def popularity(histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray] | None, items: int) -> np.ndarray:
    """How many people liked or used each item: float64 [items]."""
    counts = np.zeros(items)
    for history in liked_part(check_histories(histories, items), preferences):
        counts[np.unique(history)] += 1
    return counts


def below(best: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`best` [B, N] with ties, above all those at zero, broken by popularity [N]; nothing else is reordered."""
    return best + 1e-9 * counts / max(1.0, counts.max())
