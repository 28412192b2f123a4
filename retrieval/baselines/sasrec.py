"""SASRec (Kang & McAuley 2018, section III): items are learned vectors and nothing else.

The retriever's own transformer, training loop and softmax loss without item vectors and codes, so the difference
between the two rows of a table is what content and codes bring. With this loss instead of the paper's binary
cross-entropy SASRec is much stronger (Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really
better than SASRec?").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retrieval.model import RetrieverConfig
from retrieval.ranking import Ranked, liked_part
from retrieval.training import Validation, train_retriever


class SASRec:
    """validation: (histories, targets) for early stopping; see `train_retriever` for this and the next two."""

    name = "sasrec"

    def __init__(
        self,
        config: RetrieverConfig = RetrieverConfig(),
        *,
        validation: Validation | None = None,
        checkpoint_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.validation = validation
        self.checkpoint_dir = checkpoint_dir
        self.progress = progress

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.retriever = train_retriever(
            liked_part(histories, preferences),
            None,
            None,
            self.config,
            items=len(vectors),
            validation=self.validation,
            seed=seed,
            checkpoint_dir=self.checkpoint_dir,
            progress=self.progress,
        )

    @property
    def chosen(self) -> RetrieverConfig:
        """The config with what validation chose, to train as long again on more."""
        return self.retriever.config

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        return self.retriever.recommend(
            histories, k, preferences=preferences, mode="dense", allowed=allowed, hide_history=hide_history
        )
