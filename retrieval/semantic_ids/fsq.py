"""Finite scalar quantization: no codebook to learn, the codes are the cells of a fixed grid.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (ICLR 2024): every channel of the latent is bounded and
rounded to a few values. RecGPT (Jiang et al., "RecGPT: A Foundation Model for Sequential Recommendation", 2025) spells
an item by several such codes side by side; it cuts the text vector into as many pieces, here an encoder learns what
goes into each code. No codebook can collapse, and no code is coarser than another. The quantizer is that of
vector-quantize-pytorch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.semantic_ids.autoencoder import AutoencoderTokenizer, Network

GRIDS = ((3,), (4,), (5,), (3, 3), (4, 3), (5, 3), (5, 4), (5, 5), (8, 5), (8, 8), (8, 6, 5), (8, 5, 5, 5))
"""Values per channel; from 8 x 8 on those of Mentzer et al., table 1."""


class FSQ(AutoencoderTokenizer):
    """`levels` codes, each a cell of the largest of `GRIDS` that has at most `codebook_size` cells."""

    name = "fsq"

    def __init__(self, levels: int = 4, codebook_size: int = 256, **options: Any) -> None:
        super().__init__(levels, codebook_size, **options)

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.arrays["grid"].tolist()) if self.arrays else ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return (math.prod(self.grid),) * self.levels if self.arrays else ()

    @property
    def latent(self) -> int:
        return self.levels * len(self.grid)

    def make_bottleneck(self, items: int) -> nn.Module:
        fitting = [grid for grid in GRIDS if math.prod(grid) <= self.size_for(items)]
        self.arrays["grid"] = np.array((fitting or GRIDS[:1])[-1], np.int64)
        return self._quantizer()

    def _quantizer(self) -> Any:
        from vector_quantize_pytorch import FSQ as FiniteScalarQuantizer

        return FiniteScalarQuantizer(levels=list(self.grid), num_codebooks=self.levels, keep_num_codebooks_dim=True)

    def squeeze(self, bottleneck: Any, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rounded, codes = bottleneck(latent.unsqueeze(0))  # [1, B, latent], [1, B, L]
        return rounded.squeeze(0), latent.new_zeros(()), codes.squeeze(0)

    def learnt(self, network: Network, latent: np.ndarray) -> np.ndarray:
        return self.codes_of(latent)

    def codes_of(self, latent: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.squeeze(self._quantizer().eval(), torch.from_numpy(latent))[2].numpy().astype(np.int64)

    def latent_of(self, codes: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._quantizer().eval().indices_to_codes(torch.from_numpy(codes).int()).numpy()
