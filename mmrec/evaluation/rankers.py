"""The models of a workspace as recommenders of the harness, so that they answer the same questions as the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from diffusion.prior import Prior
    from diffusion.regression import RegressionPrior
    from retrieval.index import VectorIndex
    from retrieval.retriever import Mode, Retriever
    from retrieval.worth import Worth

Ranked = tuple[np.ndarray, np.ndarray]
SEEDS = 64
"""Seed embeddings the prior dreams per person, to vote on the items that ground them."""


class RetrieverRanker:
    """Generative retrieval in one of its modes."""

    def __init__(self, retriever: Retriever, mode: Mode, *, hide_history: bool = True) -> None:
        self.retriever, self.mode, self.hide_history = retriever, mode, hide_history
        self.name = "retriever" if mode == "fused" else f"retriever ({mode} alone)"
        if not hide_history:
            self.name = "retriever (history shown)"

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
    ) -> Ranked:
        return self.retriever.recommend(
            histories, k, preferences=preferences, mode=self.mode, allowed=allowed, hide_history=self.hide_history
        )


class DreamRanker:
    """Vectors a diffusion prior dreams (or the one its regression baseline predicts), grounded in the catalog.

    worth: what the log says of items beside the dreams, which then vote; None merges the neighbours of the dreams.
    """

    def __init__(
        self,
        name: str,
        model: Prior | RegressionPrior,
        index: VectorIndex,
        vectors: np.ndarray,
        worth: Worth | None = None,
        seed: int = 0,
    ) -> None:
        self.name, self.model, self.index, self.vectors = name, model, index, vectors
        self.worth, self.seed = worth, seed

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
    ) -> Ranked:
        from diffusion.prior import POOL, Conditions, Prior
        from retrieval.grounding import ground, ground_by_votes

        liking = preferences or [np.ones(len(history), np.float32) for history in histories]
        conditions = Conditions.from_histories(histories, liking, self.vectors)
        if isinstance(self.model, Prior):
            seeds = self.model.sample(conditions, SEEDS, seed=self.seed, pool=POOL)  # [B, n, D]
        else:
            seeds = self.model.predict(conditions)[:, None]  # [B, 1, D]
        if self.worth is None:
            grounded = [
                ground(dreamt, None, self.index, k, exclude=history, allowed=allowed)
                for dreamt, history in zip(seeds, histories, strict=True)
            ]
        else:
            grounded = [
                ground_by_votes(dreamt, worth, self.index, k, exclude=history, allowed=allowed)
                for dreamt, worth, history in zip(seeds, self.worth.of(histories, liking), histories, strict=True)
            ]
        return np.stack([g.items for g in grounded]), np.stack([g.scores for g in grounded])
