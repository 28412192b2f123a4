"""Hybrid IDs: first whom an item is used with, then what it is.

Hybrid Indexing of Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023, section
4.4), in the order that its authors' code takes by default, collaborative first. Their content part is the item's
category; here it is residual k-means over the vectors less the mean of the collaborative cluster, so that it says what
the cluster does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np

from retrieval.semantic_ids.base import Context, Progress
from retrieval.semantic_ids.collaborative import spectral_clusters
from retrieval.semantic_ids.cooccurrence import cooccurrence
from retrieval.semantic_ids.residual_kmeans import ResidualKMeans

CLUSTERS = 64  # the graph is cut once, at most so often


class HybridIds(ResidualKMeans):
    """One code for the spectral cluster of the co-occurrence graph, then `levels` - 1 codes for content."""

    name = "hybrid"
    needs = ("histories",)
    encodes_new = False

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
        labels = spectral_clusters(graph, min(CLUSTERS, self.size_for(len(vectors))), seed)
        labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
        means = np.stack([vectors[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        if self.levels == 1:
            self.codebooks = [means]
            return labels[:, None]
        content = ResidualKMeans(self.levels - 1, self.codebook_size)
        codes = content.fit(vectors - means[labels], seed, progress=progress)
        self.codebooks = [means, *content.codebooks]
        return np.column_stack([labels, codes])

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> NoReturn:
        self.check_fitted()
        self.check_encode(vectors, self.codebooks[0].shape[1])
        raise ValueError(
            "hybrid IDs cannot encode a new item: their first code follows from what was used together with it, and "
            "nothing was; use a tokenizer that reads content alone, such as residual_kmeans"
        )
