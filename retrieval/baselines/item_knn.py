"""Items liked by the same people.

Cosine between the sets of people who liked two items, shrunk where few did (Sarwar et al. 2001, "Item-Based
Collaborative Filtering Recommendation Algorithms", section 3.1; shrinkage as in Bell & Koren 2007, section 4). Among
the strongest plain baselines in Ferrari Dacrema et al. 2019, "Are We Really Making Much Progress?".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieval.baselines.base import below, popularity
from retrieval.ranking import Ranked, check_allowed, check_histories, flatten, liked_part, rank

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class ItemKNN:
    """score(j) = sum over liked events i of decay ** (events since i) * similarity(i, j).

    neighbours: similarities kept per item. shrink: people that a pair must share before its cosine is half believed.
    decay: 1 weighs the whole history alike; less favours the recent. window: pairs count only where the two stand at
    most so many events apart, and count 1 / that distance; None counts all of a history. discount: what popularity
    costs, 0.5 for the cosine.
    """

    name = "item_knn"

    def __init__(
        self,
        neighbours: int = 200,
        shrink: float = 10.0,
        decay: float = 0.95,
        window: int | None = None,
        discount: float = 0.5,
    ) -> None:
        self.neighbours = neighbours
        self.shrink = shrink
        self.decay = decay
        self.window = window
        self.discount = discount

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        from scipy.sparse import csr_matrix

        items = len(vectors)
        liked = liked_part(check_histories(histories, items), preferences)
        self.counts = popularity(histories, preferences, items)
        if self.window is None:
            people, columns = flatten([np.unique(history) for history in liked])
            seen = csr_matrix((np.ones(len(people)), (people, columns)), shape=(len(liked), items))
            both = (seen.T @ seen).tocoo()  # people who liked both
        else:
            both = _near_each_other(liked, self.window, items).tocoo()
        apart = both.row != both.col
        row, column, shared = both.row[apart], both.col[apart], both.data[apart]
        popular = np.maximum(self.counts[row] * self.counts[column], 1.0) ** self.discount
        cosine = shared / popular * shared / (shared + self.shrink)
        order = np.lexsort([column, -cosine, row])
        row, column, cosine = row[order], column[order], cosine[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)  # 0 is the nearest neighbour
        kept = place < self.neighbours
        self.similarity = csr_matrix((cosine[kept], (row[kept], column[kept])), shape=(items, items))

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        from scipy.sparse import csr_matrix

        items = len(self.counts)
        histories = check_histories(histories, items)
        liked = liked_part(histories, preferences)
        people, columns = flatten(liked)
        weights = np.concatenate([self.decay ** np.arange(len(h))[::-1] for h in liked]) if liked else np.empty(0)
        taste = csr_matrix((weights, (people, columns)), shape=(len(liked), items))
        scores = below((taste @ self.similarity).toarray(), self.counts)
        return rank(scores, k, allowed=check_allowed(allowed, items), hidden=histories if hide_history else None)


def _near_each_other(histories: Sequence[np.ndarray], window: int, items: int) -> csr_matrix:
    """[items, items], symmetric: for each pair the sum of 1 / distance over all places where both stand that near."""
    from scipy.sparse import csr_matrix

    total = csr_matrix((items, items))
    for distance in range(1, window + 1):
        pairs = [(history[:-distance], history[distance:]) for history in histories if len(history) > distance]
        if not pairs:
            break
        first = np.concatenate([a for a, _ in pairs])
        second = np.concatenate([b for _, b in pairs])
        near = csr_matrix((np.full(len(first), 1.0 / distance), (first, second)), shape=(items, items))
        total = total + near + near.T
    return total
