"""Residual k-means: each level clusters what the levels before left over.

The residual quantization of Chen, Guan & Wang, "Approximate Nearest Neighbor Search by Residual Vector Quantization"
(Sensors 2010, section 3), used for semantic IDs as the training-free alternative to the RQ-VAE of TIGER (Rajput et al.
2023, section 3.1). There is nothing to collapse: every codeword is the nearest one of some item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.semantic_ids.base import Context, Progress, Tokenizer
from retrieval.semantic_ids.kmeans import kmeans, nearest


def quantize_residuals(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """[n, D], one codebook [size, D] per level -> codes int64 [n, L], level by level the nearest."""
    residuals = vectors
    codes = np.empty((len(vectors), len(codebooks)), dtype=np.int64)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(residuals, codebook)
        residuals = residuals - codebook[codes[:, level]]
    return codes


def sum_codewords(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [n, L] -> float32 [n, D]."""
    total = np.zeros((len(codes), codebooks[0].shape[1]), dtype=np.float32)
    for level, codebook in enumerate(codebooks):
        total += codebook[codes[:, level]]
    return total


class ResidualKMeans(Tokenizer):
    """`levels` codebooks of at most `codebook_size` codewords; small catalogs get at most one per four items.

    codebook_size may also be a list, one size of each level: a wide first level and a narrow second one make a large
    catalog faster to search.
    """

    name = "residual_kmeans"

    def __init__(self, levels: int | None = None, codebook_size: int | Sequence[int] = 256) -> None:
        if isinstance(codebook_size, int):
            sizes = [codebook_size] * (3 if levels is None else levels)
        else:
            sizes = list(codebook_size)
            if levels not in (None, len(sizes)):
                raise ValueError(f"levels={levels}, but codebook_size={sizes} gives the sizes of {len(sizes)} levels")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"levels={levels}, codebook_size={codebook_size}: both must be at least 1")
        super().__init__(len(sizes), max(sizes))
        self.size_of_level = sizes
        self.options["codebook_size"] = codebook_size if isinstance(codebook_size, int) else sizes

    @property
    def codebooks(self) -> list[np.ndarray]:
        """One [size, D] per level."""
        return [self.arrays[f"codebook_{level}"] for level in range(self.levels) if self.arrays]

    @codebooks.setter
    def codebooks(self, codebooks: Sequence[np.ndarray]) -> None:
        self.arrays = {f"codebook_{level}": codebook for level, codebook in enumerate(codebooks)}

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(codebook) for codebook in self.codebooks)

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
        codebooks = []
        residuals = vectors
        for level, size in enumerate(self.size_of_level):
            codebook = kmeans(residuals, min(size, self.size_for(len(vectors))), seed + level)
            codebooks.append(codebook)
            residuals = residuals - codebook[nearest(residuals, codebook)]
            if progress is not None:
                progress(level + 1, self.levels)
        self.codebooks = codebooks
        return self.encode(vectors)

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> np.ndarray:
        self.check_fitted()
        return quantize_residuals(self.check_encode(vectors, self.codebooks[0].shape[1]), self.codebooks)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self.check_fitted()
        return sum_codewords(codes, self.codebooks)
