"""Unique semantic IDs by construction: a further code level, given out at least cost.

The tokenizer's L codes stand for the vector `reconstruct(codes)`, and several items may share them. A further codebook,
k-means over what that reconstruction leaves over, gives every item one more code. The **cost** of an ID is the squared
distance between the item's vector and what the ID stands for, `reconstruct(codes) + last_codebook[last]`.

- Items that share a prefix must have different last codes. Which gets which is a linear assignment problem, solved
  exactly: no other numbering of that prefix has a smaller sum of costs. (TIGER, Rajput et al. 2023, section 3.1, counts
  0, 1, 2, ... instead, and that number says nothing about the item.)
- Where more items share a prefix than it has free last codes, the assignment keeps the set that is cheapest to keep.
  Each item left over moves to the nearest prefix with room: first among those that differ in the last of the L codes
  only, then in the last two, and so on, the item that loses least first.
- The further level starts with room for twice the catalog. It grows further only where all prefixes near a crowd are
  full, and only in a first assignment: a model has been trained on the sizes of `taken`.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from retrieval.semantic_ids.base import ITEMS_PER_CODE, ItemTokenizer, SemanticIds
from retrieval.semantic_ids.kmeans import kmeans, nearest

LAST_SIZES = (16, 256)  # for small and for large catalogs
MAX_PREFIXES = 1 << 17  # prefixes weighed at once when items have to move

Prefix = tuple[int, ...]


class NoRoom(ValueError):
    """No free ID is left near some item."""


def assign_unique(
    codes: np.ndarray,
    vectors: np.ndarray,
    tokenizer: ItemTokenizer,
    *,
    taken: SemanticIds | None = None,
    seed: int = 0,
) -> SemanticIds:
    """Semantic IDs int64 [n, L+1] for items with tokenizer codes [n, L] and vectors float32 [n, D].

    With `taken`, the items are new ones of a catalog that already has IDs: the result holds the new items only, and
    collides neither within itself nor with `taken` (`taken.join(result)` is the whole catalog).
    Raises ValueError if the shapes do not match, or if `taken` leaves no free ID.
    """
    codes = np.asarray(codes, dtype=np.int64)
    vectors = np.asarray(vectors, dtype=np.float32)
    if codes.ndim != 2 or len(codes) != len(vectors) or codes.shape[1] != len(tokenizer.sizes):
        raise ValueError(
            f"codes {list(codes.shape)} and vectors {list(vectors.shape)}: "
            f"need [n, {len(tokenizer.sizes)}] and [n, D], one row per item"
        )
    if taken is not None:
        if taken.sizes[:-1] != tuple(tokenizer.sizes):
            raise ValueError(
                f"taken has levels {taken.sizes[:-1]}, the tokenizer {tokenizer.sizes}: they do not belong together"
            )
        return _Assignment(codes, vectors, tokenizer, taken.last_codebook, taken).run()
    residuals = vectors - tokenizer.reconstruct(codes)
    size = min(LAST_SIZES[1], max(LAST_SIZES[0], len(vectors) // ITEMS_PER_CODE))
    while size * math.prod(tokenizer.sizes) < 2 * len(vectors):  # leave room for as many new items
        size *= 2
    while True:
        centroids = kmeans(residuals, size, seed + len(tokenizer.sizes)) if len(vectors) else residuals[:0]
        last_codebook = np.resize(centroids, (size, vectors.shape[1]))  # repeats where too few differ
        try:
            return _Assignment(codes, vectors, tokenizer, last_codebook, None).run()
        except NoRoom:
            size *= 2


class _Assignment:
    def __init__(
        self,
        codes: np.ndarray,
        vectors: np.ndarray,
        tokenizer: ItemTokenizer,
        last_codebook: np.ndarray,
        taken: SemanticIds | None,
    ) -> None:
        self.wanted, self.vectors, self.tokenizer, self.last_codebook = codes, vectors, tokenizer, last_codebook
        self.codes = codes.copy()
        self.last = np.full(len(codes), -1, dtype=np.int64)
        self.used: dict[Prefix, set[int]] = defaultdict(set)
        if taken is not None:
            for row in taken.codes.tolist():
                self.used[tuple(row[:-1])].add(row[-1])

    def run(self) -> SemanticIds:
        from scipy.optimize import linear_sum_assignment

        residuals = self.vectors - self.tokenizer.reconstruct(self.wanted)
        closest = nearest(residuals, self.last_codebook) if len(residuals) else self.last
        groups: dict[Prefix, list[int]] = defaultdict(list)
        for row, prefix in enumerate(self.wanted.tolist()):
            groups[tuple(prefix)].append(row)
        homeless: dict[Prefix, list[int]] = {}
        for prefix, rows in groups.items():
            if len(rows) == 1 and int(closest[rows[0]]) not in self.used[prefix]:
                self._place(rows[0], prefix, int(closest[rows[0]]))
                continue
            free = self._free(prefix)
            cost = _squared_distances(residuals[rows], self.last_codebook[free])  # [rows, free]
            kept, places = linear_sum_assignment(cost)
            for position, place in zip(kept, places, strict=True):
                self._place(rows[position], prefix, int(free[place]))
            if len(kept) < len(rows):
                homeless[prefix] = [row for row in rows if self.last[row] < 0]
        for prefix, rows in homeless.items():
            self._move(prefix, rows)
        sizes = (*self.tokenizer.sizes, len(self.last_codebook))
        return SemanticIds(np.column_stack([self.codes, self.last]), sizes, self.wanted, self.last_codebook)

    def _place(self, row: int, prefix: Prefix, last: int) -> None:
        self.codes[row] = prefix
        self.last[row] = last
        self.used[prefix].add(last)

    def _free(self, prefix: Prefix) -> np.ndarray:
        free = np.ones(len(self.last_codebook), dtype=bool)
        free[list(self.used[prefix])] = False
        return np.flatnonzero(free)

    def _move(self, prefix: Prefix, rows: list[int]) -> None:
        """Give `rows`, for whom `prefix` has no room, the nearest prefix that has."""
        sizes = self.tokenizer.sizes
        for freed in range(1, len(sizes) + 1):
            tail = sizes[len(sizes) - freed :]
            if math.prod(tail) > MAX_PREFIXES:
                break
            tails = np.indices(tail).reshape(freed, -1).T  # [prefixes, freed]
            heads = np.broadcast_to(
                np.array(prefix[: len(sizes) - freed], dtype=np.int64), (len(tails), len(sizes) - freed)
            )
            prefixes = np.concatenate([heads, tails], axis=1)
            meanings = self.tokenizer.reconstruct(prefixes)
            rows = self._settle(rows, prefixes, meanings)
            if not rows:
                return
        raise NoRoom(
            f"{len(rows)} items find no free semantic ID near the prefix {prefix} of {len(self.last_codebook)} last "
            "codes: fit the tokenizer again on the whole catalog, with more levels or larger codebooks"
        )

    def _settle(self, rows: list[int], prefixes: np.ndarray, meanings: np.ndarray) -> list[int]:
        room = np.array([len(self.last_codebook) - len(self.used[tuple(prefix)]) for prefix in prefixes.tolist()])
        while rows and room.any():
            open_ = np.flatnonzero(room)
            cost = _squared_distances(self.vectors[rows], meanings[open_])  # [rows, open prefixes]
            choice = open_[cost.argmin(axis=1)]
            waiting = []
            for position in np.argsort(cost.min(axis=1), kind="stable"):
                row, chosen = rows[position], int(choice[position])
                if room[chosen] == 0:
                    waiting.append(row)
                    continue
                prefix = tuple(prefixes[chosen].tolist())
                free = self._free(prefix)
                left_over = (self.vectors[row] - meanings[chosen])[None]
                self._place(row, prefix, int(free[_squared_distances(left_over, self.last_codebook[free]).argmin()]))
                room[chosen] -= 1
            rows = waiting
        return rows


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * (a @ b.T), 0.0)
