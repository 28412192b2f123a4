"""Product quantization: the vector is cut into pieces, each with a codebook of its own.

Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search" (2011), behind the rotation that loses least
by the cutting, "Optimized Product Quantization" (Ge et al. 2013, from FAISS). RPG (Hou et al., "Generating Long
Semantic IDs in Parallel for Recommendation", KDD 2025, section 3.1) makes its long semantic IDs so. The codes of an
item say different things side by side: the first is no coarser than the last. Each codebook is fitted here by our
k-means, which leaves no dead codes in small catalogs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.semantic_ids.base import Context, Progress, Tokenizer
from retrieval.semantic_ids.kmeans import kmeans, nearest


class ProductQuantizer(Tokenizer):
    """`levels` pieces of at most `codebook_size` codewords each. rotate: find the rotation of OPQ first."""

    name = "product"

    def __init__(self, levels: int = 4, codebook_size: int = 256, rotate: bool = True) -> None:
        super().__init__(levels, codebook_size, rotate=rotate)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(self.arrays[f"codebook_{level}"]) for level in range(self.levels) if self.arrays)

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
        size = self.size_for(len(vectors))
        padded = self._padded(vectors)
        rotation = np.eye(padded.shape[1], dtype=np.float32)
        if self.options["rotate"] and size > 1:
            rotation = _opq_rotation(padded, self.levels, size, seed)
        self.arrays = {"rotation": rotation, "width": np.array([vectors.shape[1]], np.int64)}
        for level, piece in enumerate(self._pieces(vectors)):
            self.arrays[f"codebook_{level}"] = kmeans(piece, size, seed + level)
            if progress is not None:
                progress(level + 1, self.levels)
        return self.encode(vectors)

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> np.ndarray:
        self.check_fitted()
        pieces = self._pieces(self.check_encode(vectors, int(self.arrays["width"][0])))
        codes = [nearest(piece, self.arrays[f"codebook_{level}"]) for level, piece in enumerate(pieces)]
        return np.stack(codes, axis=1)  # [n, levels]

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self.check_fitted()
        pieces = [self.arrays[f"codebook_{level}"][codes[:, level]] for level in range(self.levels)]
        return (np.concatenate(pieces, axis=1) @ self.arrays["rotation"])[:, : int(self.arrays["width"][0])]

    def _pieces(self, vectors: np.ndarray) -> list[np.ndarray]:
        return np.split(self._padded(vectors) @ self.arrays["rotation"].T, self.levels, axis=1)

    def _padded(self, vectors: np.ndarray) -> np.ndarray:
        """With zeros, to a width that can be cut evenly."""
        return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % self.levels)))


def _opq_rotation(vectors: np.ndarray, levels: int, size: int, seed: int) -> np.ndarray:
    """An orthogonal float32 [D, D]; pieces of `vectors @ rotation.T` are quantized."""
    import faiss

    quantizer: Any = faiss.ProductQuantizer(vectors.shape[1], levels, int(math.log2(size)))
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # do not warn of small catalogs
    rotation = faiss.OPQMatrix(vectors.shape[1], levels)
    rotation.pq = quantizer
    rotation.train(np.ascontiguousarray(vectors))
    return faiss.vector_to_array(rotation.A).reshape(vectors.shape[1], vectors.shape[1])
