"""Sequential IDs: items numbered in the order in which the histories first meet them.

Sequential Indexing of Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023, section
4.1): going through person after person, every item not met before gets the next number. Items that one person used in
a row get neighbouring numbers, and so share their first digits. As there, the training part alone is read; items that
it lacks come last.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.semantic_ids.base import Context, Progress
from retrieval.semantic_ids.lookup import LookupIds, digits


class SequentialIds(LookupIds):
    """The number of an item, spelt in `levels` digits."""

    name = "sequential"
    needs = ("histories",)
    why = "an item is numbered by who used it first, and nobody has used this one"

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
        events = np.concatenate([*known.histories, np.arange(len(vectors))])
        met, first = np.unique(events, return_index=True)
        numbers = np.empty(len(vectors), np.int64)
        numbers[met[np.argsort(first)]] = np.arange(len(vectors))
        return self.give_out(*digits(numbers, len(vectors), self.levels, self.codebook_size), vectors)
