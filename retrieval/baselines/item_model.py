"""What the published models over item ids share: a loop, a catalog of learned vectors, and lists by dot product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.baselines.fitting import fit
from retrieval.model import Backbone, RetrieverConfig
from retrieval.ranking import Ranked, check_allowed, check_histories, liked_part, padded, rank, recall_and_ndcg
from retrieval.training import batches, fingerprint_of

PEOPLE_AT_ONCE = 256
DEFAULT = RetrieverConfig(learning_rate=1e-3, epochs=100, patience=10, negatives=256)


class ItemModel(nn.Module):
    """Reads items and states what comes next; `items` are their vectors, input and output alike."""

    def __init__(self, config: RetrieverConfig, items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(items, config.dim)
        nn.init.normal_(self.items.weight, std=0.5 * config.dim**-0.5)

    def next(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """histories int64 [B, T], padded with -1 at the end, of `lengths` int64 [B] -> [B, d]"""
        raise NotImplementedError


class CausalModel(ItemModel):
    """The retriever's backbone over item vectors alone."""

    def __init__(self, config: RetrieverConfig, items: int) -> None:
        super().__init__(config, items)
        self.backbone = Backbone(config)

    def states(self, sequences: Tensor) -> Tensor:
        """int64 [B, T], padded with -1 at the end -> [B, T + 1, d]; state t has read the first t items."""
        return self.backbone(self.items(sequences.clamp(min=0)) * self.config.dim**0.5)

    def next(self, histories: Tensor, lengths: Tensor) -> Tensor:
        return self.states(histories)[torch.arange(len(histories), device=histories.device), lengths]

    def pairs(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Every item and the state that has read those before it: [P, d], int64 [P]"""
        real = sequences >= 0
        return self.states(sequences[:, :-1])[real], sequences[real]


class ItemBaseline(ABC):
    """A baseline made of an `ItemModel` and a loss.

    validation: (histories, targets) for early stopping by NDCG@10; checkpoint_dir, progress: as in `train_retriever`.
    After `fit`, `chosen` is the config with the epoch that validation chose.
    """

    name: str
    last_window = 0  # how many places of the window are no history

    def __init__(
        self,
        config: RetrieverConfig = DEFAULT,
        *,
        validation: tuple[Sequence[np.ndarray], np.ndarray] | None = None,
        checkpoint_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.validation = validation
        self.checkpoint_dir = checkpoint_dir
        self.progress = progress

    @abstractmethod
    def network(self, items: int) -> ItemModel:
        """A new model."""

    @abstractmethod
    def loss(self, model: Any, sequences: Tensor) -> Tensor:
        """The loss of sequences int64 [B, T], padded with -1 at the end; randomness from torch's generator."""

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        liked = [h for h in liked_part(check_histories(histories, len(vectors)), preferences) if len(h)]
        if not liked:
            raise ValueError("there is no event to train on: every history is empty")
        told = [] if self.validation is None else [*self.validation[0], self.validation[1]]

        def loss_of(model: nn.Module, batch: np.ndarray, device: torch.device) -> Tensor:
            return self.loss(model, torch.from_numpy(batch).to(device))

        model, best_epoch = fit(
            lambda: self.network(len(vectors)),
            self.config,
            lambda epoch: batches(liked, self.config.max_history, self.config.batch_size, seed, epoch),
            loss_of,
            score=None if self.validation is None else self._ndcg,
            fingerprint=fingerprint_of(self.config, seed, [*liked, *told]),
            seed=seed,
            checkpoint_dir=self.checkpoint_dir,
            progress=self.progress,
        )
        self.model: Any = model
        self.chosen = replace(self.config, stop_after=best_epoch)

    @torch.no_grad()
    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        vectors = self.model.items.weight
        allowed = check_allowed(allowed, len(vectors))
        histories = check_histories(histories, len(vectors))
        window = self.config.max_history - self.last_window
        taste = [liked[-window:] for liked in liked_part(histories, preferences)]
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for start in range(0, len(histories), PEOPLE_AT_ONCE):
            rows = slice(start, start + PEOPLE_AT_ONCE)
            h = self.model.next(*(torch.from_numpy(part).to(vectors.device) for part in padded(taste[rows])))
            hidden = histories[rows] if hide_history else None
            items[rows], scores[rows] = rank((h @ vectors.T).cpu().numpy(), k, allowed=allowed, hidden=hidden)
        return items, scores

    def _ndcg(self, model: nn.Module) -> float:
        assert self.validation is not None
        self.model = model
        return recall_and_ndcg(self.recommend(self.validation[0], 10)[0], self.validation[1])[1]
