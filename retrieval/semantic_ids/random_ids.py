"""Random IDs: the baseline of Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023,
section 3: Random Indexing), and of TIGER's ablation. What they reach is what codes are worth that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.semantic_ids.base import Context, Progress
from retrieval.semantic_ids.lookup import LookupIds, digits


class RandomIds(LookupIds):
    """Every item gets a number by lot, spelt in `levels` digits."""

    name = "random"
    why = "the number of an item is drawn by lot and says nothing about it"

    def fit(
        self,
        vectors: np.ndarray,
        seed: int = 0,
        context: Context | None = None,
        *,
        checkpoint_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        vectors, _ = self.check_fit(vectors, context)
        numbers = np.random.default_rng(seed).permutation(len(vectors))
        return self.give_out(*digits(numbers, len(vectors), self.levels, self.codebook_size), vectors)
