"""Modality-decoupled codes: one code says which modalities an item has, then every modality gets codes of its own.

The modality-decoupled semantic quantization of GENIUS (Kim et al., "GENIUS: A Generative Framework for Universal
Multimodal Search", CVPR 2025, section 3.2): the first code tells the modality, what follows the meaning. There an item
is one vector and has one residual block of codes after the first; here it may have pictures, words and sound at once,
so that each modality has its block, residual k-means over its own vectors, and code 0 where the item lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retrieval.semantic_ids.base import Context, Progress, Tokenizer
from retrieval.semantic_ids.residual_kmeans import ResidualKMeans, quantize_residuals, sum_codewords

RIDGE = 1e-3


class DecoupledCodes(Tokenizer):
    """`levels` codes per modality behind the one that tells which there are; modalities in alphabetical order."""

    name = "decoupled"
    needs = ("modalities",)

    def __init__(self, levels: int = 2, codebook_size: int = 256) -> None:
        super().__init__(levels, codebook_size)

    @property
    def modalities(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self.arrays if "/" in name})

    @property
    def sizes(self) -> tuple[int, ...]:
        blocks = [len(codebook) for name in self.modalities for codebook in self._codebooks(name)]
        return (2 ** len(self.modalities), *blocks) if self.arrays else ()

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
        self.arrays = {}
        for done, (name, of_modality) in enumerate(sorted(known.modalities.items())):
            has = _has(of_modality, len(vectors), name)
            if not has.any():
                raise ValueError(f"no item has the modality {name!r}: leave it out")
            mean = of_modality[has].mean(axis=0)
            block = ResidualKMeans(self.levels, self.codebook_size)
            block.fit(of_modality[has] - mean, seed)
            self.arrays[f"{name}/mean"] = mean.astype(np.float32)
            for level, codebook in enumerate(block.codebooks):
                self.arrays[f"{name}/{level}"] = np.concatenate([np.zeros_like(codebook[:1]), codebook])
            if progress is not None:
                progress(done + 1, len(known.modalities))
        codes = self._encode(known.modalities, len(vectors))
        # What the codes of all modalities together say of the item vector, by ridge regression.
        said = self._said(codes)  # [N, sum of widths + modalities + 1]
        square = said.T @ said + RIDGE * np.eye(said.shape[1])
        self.arrays["map"] = np.linalg.solve(square, said.T @ vectors).astype(np.float32)
        return codes

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> np.ndarray:
        """The vectors only say how many items there are; what is encoded is `context.modalities`."""
        self.check_fitted()
        vectors = self.check_encode(vectors, self.arrays["map"].shape[1])
        if context is None or not set(context.modalities) & set(self.modalities):
            raise ValueError(f"decoupled codes are made of {', '.join(self.modalities)}: give Context(modalities=...)")
        return self._encode(context.modalities, len(vectors))

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self.check_fitted()
        return (self._said(codes) @ self.arrays["map"]).astype(np.float32)

    def _encode(self, modalities: Mapping[str, np.ndarray], items: int) -> np.ndarray:
        codes = np.zeros((items, 1 + len(self.modalities) * self.levels), np.int64)
        for place, name in enumerate(self.modalities):
            if name not in modalities:
                continue
            codebooks, mean = self._codebooks(name), self.arrays[f"{name}/mean"]
            of_modality = np.asarray(modalities[name], np.float32)
            has = _has(of_modality, items, name)
            codes[has, 0] += 2**place
            columns = slice(1 + place * self.levels, 1 + (place + 1) * self.levels)
            codes[has, columns] = 1 + quantize_residuals(of_modality[has] - mean, [book[1:] for book in codebooks])
        return codes

    def _said(self, codes: np.ndarray) -> np.ndarray:
        """Per item the vectors that its codes stand for in each modality, which modalities there are, and a one."""
        columns = []
        for place, name in enumerate(self.modalities):
            block = codes[:, 1 + place * self.levels : 1 + (place + 1) * self.levels]
            columns += [sum_codewords(block, self._codebooks(name)), block[:, :1] > 0]
        return np.concatenate([*columns, np.ones((len(codes), 1))], axis=1).astype(np.float64)

    def _codebooks(self, name: str) -> list[np.ndarray]:
        """Per level [1 + size, d]; row 0, zeros, stands for a modality that the item lacks."""
        return [self.arrays[f"{name}/{level}"] for level in range(self.levels)]


def _has(of_modality: np.ndarray, items: int, name: str) -> np.ndarray:
    if of_modality.ndim != 2 or len(of_modality) != items or not np.isfinite(of_modality).all():
        raise ValueError(f"modality {name!r} is {list(of_modality.shape)}: need finite numbers [{items}, d]")
    return np.asarray(of_modality.any(axis=1))
