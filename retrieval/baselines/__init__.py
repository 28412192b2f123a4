"""Recommenders that every result stands beside."""

from retrieval.baselines.base import Recommender
from retrieval.baselines.registry import baseline_class, baseline_names, make_baseline, published_names

__all__ = ["Recommender", "baseline_class", "baseline_names", "make_baseline", "published_names"]
