"""Items liked by the same people.

Cosine between the sets of people who liked two items, shrunk where few did (Sarwar et al. 2001, "Item-Based
Collaborative Filtering Recommendation Algorithms", section 3.1; shrinkage as in Bell & Koren 2007, section 4). Among
the strongest plain baselines in Ferrari Dacrema et al. 2019, "Are We Really Making Much Progress?".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.baselines.base import below, popularity
from retrieval.ranking import Ranked, check_allowed, check_histories, flatten, liked_part, rank


class ItemKNN:
    """score(j) = sum over liked events i of decay ** (events since i) * similarity(i, j).

    neighbours: similarities kept per item. shrink: people that a pair must share before its cosine is half believed.
    decay: 1 weighs the whole history alike; less favours the recent.
    """

    name = "item_knn"

    def __init__(self, neighbours: int = 200, shrink: float = 10.0, decay: float = 0.95) -> None:
        self.neighbours = neighbours
        self.shrink = shrink
        self.decay = decay

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        from scipy.sparse import csr_matrix

        items = len(vectors)
        liked = [np.unique(history) for history in liked_part(check_histories(histories, items), preferences)]
        people, columns = flatten(liked)
        seen = csr_matrix((np.ones(len(people)), (people, columns)), shape=(len(liked), items))
        self.counts = popularity(histories, preferences, items)
        both = (seen.T @ seen).tocoo()  # people who liked both
        apart = both.row != both.col
        row, column, shared = both.row[apart], both.col[apart], both.data[apart]
        cosine = shared / np.sqrt(self.counts[row] * self.counts[column]) * shared / (shared + self.shrink)
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
