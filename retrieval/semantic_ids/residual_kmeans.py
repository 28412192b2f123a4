"""Residual k-means: each level clusters what the levels before left over.

The residual quantization of Chen, Guan & Wang, "Approximate Nearest Neighbor Search by Residual Vector Quantization"
(Sensors 2010, section 3), used for semantic IDs as the training-free alternative to the RQ-VAE of TIGER (Rajput et al.
2023, section 3.1). There is nothing to collapse: every codeword is the nearest one of some item.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.files import read_arrays, read_json, write_arrays, write_json
from retrieval.semantic_ids.kmeans import kmeans, nearest

ITEMS_PER_CODE = 4


class ResidualKMeans:
    """`levels` codebooks of at most `codebook_size` codewords; small catalogs get at most one per four items."""

    name = "residual_kmeans"

    def __init__(self, levels: int = 3, codebook_size: int = 256) -> None:
        if levels < 1 or codebook_size < 1:
            raise ValueError(f"levels={levels}, codebook_size={codebook_size}: both must be at least 1")
        self.levels = levels
        self.codebook_size = codebook_size
        self.codebooks: list[np.ndarray] = []  # one [size, D] per level

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(codebook) for codebook in self.codebooks)

    def fit(self, vectors: np.ndarray, seed: int = 0) -> None:
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) == 0 or not np.isfinite(vectors).all():
            raise ValueError(f"vectors {list(vectors.shape)}: need finite numbers [N, D] with at least one item")
        size = max(1, min(self.codebook_size, len(vectors) // ITEMS_PER_CODE))
        self.codebooks = []
        residuals = vectors
        for level in range(self.levels):
            codebook = kmeans(residuals, size, seed + level)
            self.codebooks.append(codebook)
            residuals = residuals - codebook[nearest(residuals, codebook)]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        self._check_fitted()
        residuals = np.asarray(vectors, dtype=np.float32)
        width = self.codebooks[0].shape[1]
        if residuals.ndim != 2 or residuals.shape[1] != width:
            raise ValueError(f"vectors {list(residuals.shape)}: this tokenizer was fitted on [N, {width}]")
        codes = np.empty((len(residuals), len(self.codebooks)), dtype=np.int64)
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = nearest(residuals, codebook)
            residuals = residuals - codebook[codes[:, level]]
        return codes

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self._check_fitted()
        total = np.zeros((len(codes), self.codebooks[0].shape[1]), dtype=np.float32)
        for level, codebook in enumerate(self.codebooks):
            total += codebook[codes[:, level]]
        return total

    def save(self, path: Path) -> None:
        self._check_fitted()
        path = Path(path)
        write_arrays(path / "tokenizer.safetensors", {f"codebook_{i}": c for i, c in enumerate(self.codebooks)})
        options = {"levels": self.levels, "codebook_size": self.codebook_size}
        write_json(path / "tokenizer.json", {"name": self.name, "options": options})

    @classmethod
    def load(cls, path: Path) -> ResidualKMeans:
        path = Path(path)
        tokenizer = cls(**read_json(path / "tokenizer.json")["options"])
        arrays = read_arrays(path / "tokenizer.safetensors")
        tokenizer.codebooks = [arrays[f"codebook_{level}"] for level in range(tokenizer.levels)]
        return tokenizer

    def _check_fitted(self) -> None:
        if not self.codebooks:
            raise ValueError("the tokenizer has no codebooks yet: call fit(vectors, seed) first")
