"""Baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from retrieval.baselines.base import Recommender

QUICK = {  # in every table
    "popularity": "popularity.Popularity",
    "item_knn": "item_knn.ItemKNN",
    "history_knn": "history_knn.HistoryKNN",
    "mean_history": "mean_history.MeanHistory",
    "sasrec": "sasrec.SASRec",
}
PUBLISHED = {  # trained for long; a benchmark asks for them by name
    "sasrec_bce": "sasrec_bce.SASRecBCE",
    "bert4rec": "bert4rec.BERT4Rec",
    "hstu": "hstu.HSTU",
    "tiger": "tiger.Tiger",
}


def baseline_names() -> list[str]:
    """Those quick enough to stand in every table."""
    return list(QUICK)


def published_names() -> list[str]:
    """Published models that are trained for long, and so only where a benchmark asks for them."""
    return list(PUBLISHED)


def baseline_class(name: str) -> Callable[..., Recommender]:
    """What makes new, unfitted baselines of that name. Raises KeyError for an unknown one."""
    places = QUICK | PUBLISHED
    if name not in places:
        raise KeyError(f"no baseline is called {name!r}; there are: {', '.join(places)}")
    module, _, kind = places[name].partition(".")
    return getattr(import_module(f"retrieval.baselines.{module}"), kind)


def make_baseline(name: str, **options: Any) -> Recommender:
    """A new, unfitted baseline. Raises KeyError for an unknown name."""
    return baseline_class(name)(**options)
