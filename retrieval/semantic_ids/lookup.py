"""IDs that are given out and looked up, not computed from what an item is."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, NoReturn

import numpy as np

from retrieval.semantic_ids.base import Context, Tokenizer


class LookupIds(Tokenizer):
    """Codes stand for the mean of the fitted items that have them, or else of those that share the longest prefix.

    So a code that one item alone has stands for exactly its vector, and the level that `assign_unique` adds, which
    numbers by what is left over, says nothing more about it.
    """

    encodes_new = False
    why: ClassVar[str]
    """Why a new item has no code, after "... IDs cannot encode a new item: "."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.arrays["sizes"].tolist()) if self.arrays else ()

    def give_out(self, codes: np.ndarray, sizes: tuple[int, ...], vectors: np.ndarray) -> np.ndarray:
        """Remember the codes int64 [N, L] of the fitted items, and return them."""
        self.arrays = {"codes": codes.astype(np.int64), "sizes": np.array(sizes, np.int64), "vectors": vectors}
        self.__dict__.pop("_means", None)
        return self.arrays["codes"]

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> NoReturn:
        self.check_fitted()
        self.check_encode(vectors, self.arrays["vectors"].shape[1])
        raise ValueError(
            f"{self.name} IDs cannot encode a new item: {self.why}; use a tokenizer that reads content, such as "
            "residual_kmeans"
        )

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self.check_fitted()
        codes = np.asarray(codes, np.int64)
        meaning = np.broadcast_to(self.arrays["vectors"].mean(axis=0), (len(codes), self.arrays["vectors"].shape[1]))
        meaning = meaning.copy()
        for depth, (keys, means) in enumerate(self._means, start=1):
            wanted = self._keys(codes, depth)
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = keys[place] == wanted
            meaning[known] = means[place[known]]
        return meaning

    @cached_property
    def _means(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per depth the keys of the prefixes in use, ascending, and the mean vector [D] of each."""
        codes, vectors = self.arrays["codes"], self.arrays["vectors"]
        tables = []
        for depth in range(1, codes.shape[1] + 1):
            keys, group, counts = np.unique(self._keys(codes, depth), return_inverse=True, return_counts=True)
            sums = np.zeros((len(keys), vectors.shape[1]), np.float64)
            np.add.at(sums, group.reshape(-1), vectors)
            tables.append((keys, (sums / counts[:, None]).astype(np.float32)))
        return tables

    def _keys(self, codes: np.ndarray, depth: int) -> np.ndarray:
        """A number per prefix of so many codes."""
        return np.ravel_multi_index(tuple(codes[:, :depth].T), self.sizes[:depth])


def digits(numbers: np.ndarray, items: int, levels: int, codebook_size: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """`levels` digits int64 [n, levels] of each number below `items`, in the smallest base that can spell them all.

    Raises ValueError if that base is larger than codebook_size.
    """
    base = next(base for base in range(1, items + 1) if base**levels >= items)
    if base > codebook_size:
        raise ValueError(f"{levels} levels of {codebook_size} codes cannot number {items} items: raise one of them")
    return np.stack(np.unravel_index(numbers, (base,) * levels), axis=1).astype(np.int64), (base,) * levels
