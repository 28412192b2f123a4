"""Baselines by name."""

from __future__ import annotations

from typing import Any

from retrieval.baselines.base import Recommender
from retrieval.baselines.history_knn import HistoryKNN
from retrieval.baselines.item_knn import ItemKNN
from retrieval.baselines.mean_history import MeanHistory
from retrieval.baselines.popularity import Popularity


def baseline_names() -> list[str]:
    return ["popularity", "item_knn", "history_knn", "mean_history", "sasrec"]


def make_baseline(name: str, **options: Any) -> Recommender:
    """A new, unfitted baseline. Raises KeyError for an unknown name."""
    if name == "sasrec":
        from retrieval.baselines.sasrec import SASRec  # torch

        return SASRec(**options)
    light: dict[str, type] = {b.name: b for b in (Popularity, ItemKNN, HistoryKNN, MeanHistory)}
    if name not in light:
        raise KeyError(f"no baseline is called {name!r}; there are: {', '.join(baseline_names())}")
    return light[name](**options)
