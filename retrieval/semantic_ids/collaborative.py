"""Collaborative IDs: the codes are the path of an item in a tree of spectral clusters of the co-occurrence graph.

Collaborative Indexing of Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023,
section 4.2): the graph of which items stand in one training history is cut into clusters, each cluster's graph again,
and so on; items of one leaf are told apart by one more code. There that code counts; here `assign_unique` gives it.
Spectral clustering as Ng, Jordan & Weiss (2001): k-means on the rows, made unit length, of the leading eigenvectors of
the normalised graph.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.semantic_ids.base import ITEMS_PER_CODE, Context, Progress
from retrieval.semantic_ids.cooccurrence import cooccurrence
from retrieval.semantic_ids.kmeans import kmeans, nearest
from retrieval.semantic_ids.lookup import LookupIds

LEAF = 32  # items per leaf aimed at, fewer than the last code can tell apart
DENSE = 500  # up to so many items the eigenvectors are computed exactly


class CollaborativeIds(LookupIds):
    """`levels` cuts, each into as many clusters as leave about `LEAF` items per leaf."""

    name = "collaborative"
    needs = ("histories",)
    why = "its codes follow from what was used together with it, and nothing was"

    def fit(
        self,
        vectors: np.ndarray,
        seed: int = 0,
        context: Context | None = None,
        *,
        checkpoint_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        vectors, known = self.check_fit(vectors, context)
        graph = cooccurrence(known.histories, len(vectors))
        wide = min(self.codebook_size, math.ceil(max(1.0, len(vectors) / LEAF) ** (1 / self.levels)))
        codes = cluster_tree(graph, self.levels, wide, seed, progress)
        return self.give_out(codes, (wide,) * self.levels, vectors)


def cluster_tree(graph: Any, levels: int, wide: int, seed: int, progress: Progress | None = None) -> np.ndarray:
    """The path int64 [N, levels] of every node: which of at most `wide` clusters, and in it, and so on."""
    nodes = graph.shape[0]
    codes = np.zeros((nodes, levels), np.int64)
    groups = [np.arange(nodes)]
    for level in range(levels):
        parts = []
        for group in groups:
            labels = spectral_clusters(graph[group][:, group], min(wide, max(1, len(group) // ITEMS_PER_CODE)), seed)
            codes[group, level] = labels
            parts += [group[labels == label] for label in np.unique(labels)]
        groups = parts
        if progress is not None:
            progress(level + 1, levels)
    return codes


def spectral_clusters(graph: Any, clusters: int, seed: int) -> np.ndarray:
    """A label int64 [n] per node. Those without a neighbour share the last cluster, or are dealt out if all are so."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    nodes = graph.shape[0]
    if clusters <= 1:
        return np.zeros(nodes, np.int64)
    degree = np.asarray(graph.sum(axis=1)).reshape(-1)
    linked = np.flatnonzero(degree)
    if len(linked) < clusters:
        return np.arange(nodes) * clusters // nodes
    labels = np.full(nodes, clusters - 1, np.int64)
    clusters -= len(linked) < nodes
    scale = diags(degree[linked] ** -0.5)
    normal = scale @ graph[linked][:, linked] @ scale
    if len(linked) <= DENSE:
        places = np.linalg.eigh(normal.toarray())[1][:, -clusters:]  # [linked, clusters]
    else:
        start = np.random.default_rng(seed).standard_normal(len(linked))
        places = eigsh(normal, k=clusters, which="LA", v0=start)[1]  # a looser tolerance misses parts of the graph
    places = places / np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1e-12)
    labels[linked] = nearest(places, kmeans(places, clusters, seed))
    return labels
