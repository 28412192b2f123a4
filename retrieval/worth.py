"""What a log says of items before anything is dreamt: how much each is liked, and what is liked by the same people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.ranking import check_histories, flatten

MOST = 5_000
"""Items whose co-use is learned, the most rated first: its cost grows with their third power."""


class Worth:
    """log(likes + 1) of each item, plus what the person's ratings say of it through those of others.

    rate: people were given the items that they rated and did not seek them out, so not how often an item was liked
    counts but how often of those times that it was rated.

    What others' ratings say is a linear model over items, EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for
    Sparse Data"), of likes and dislikes as +1 and -1; `shrink` is its ridge, `couse` what it counts beside popularity,
    and `trust` what both count beside nearness to a seed.
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        items: int,
        *,
        shrink: float = 300.0,
        couse: float = 6.0,
        trust: float = 2.0,
        rate: bool = False,
    ) -> None:
        histories = check_histories(histories, items)
        self.items, self.couse, self.trust = items, couse, trust
        ratings = self._ratings(histories, preferences)
        self.popular = np.log1p(np.bincount(ratings.indices[ratings.data > 0], minlength=items))
        if rate:
            self.popular = self.popular - np.log(np.bincount(ratings.indices, minlength=items) + 3)
        rated = np.bincount(ratings.indices, minlength=items)
        self.known = np.sort(np.argsort(-rated, kind="stable")[: min(MOST, int((rated > 0).sum()))])
        table = ratings[:, self.known]
        precision = np.asarray((table.T @ table).todense(), np.float64)
        precision[np.diag_indices(len(precision))] += shrink
        inverse = np.linalg.inv(precision) if len(precision) else precision
        self.weights = (-inverse / np.diag(inverse)).astype(np.float32)  # [M, M], column j predicts item known[j]
        np.fill_diagonal(self.weights, 0)

    def of(self, histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """float32 [B, N], on a logarithmic scale: items that differ by 1 differ e-fold in worth to the person."""
        told = self._ratings(check_histories(histories, self.items), preferences)[:, self.known]
        worth = np.tile(self.popular.astype(np.float32), (len(histories), 1))
        worth[:, self.known] += self.couse * (told @ self.weights)
        return self.trust * worth

    def _ratings(self, histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray] | None):  # type: ignore[no-untyped-def]
        from scipy.sparse import csr_matrix

        people, columns = flatten(histories)
        said = np.ones(len(columns)) if preferences is None else np.sign(np.concatenate([*preferences, np.empty(0)]))
        return csr_matrix((said.astype(np.float32), (people, columns)), shape=(len(histories), self.items))
