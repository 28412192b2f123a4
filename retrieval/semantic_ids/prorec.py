"""Progressive fusion: what an item is is first brought into the space of who uses it, then both are quantized as one.

PRORec (Xiao et al., "Progressive Collaborative and Semantic Knowledge Fusion for Generative Recommendation", 2025)
observes that codes of both kinds of vectors side by side say next to nothing of the collaborative side, which the
semantic one drowns, and proposes two stages. Written here from its abstract, which leaves the losses open; they are
ours:

1. Cross-modality alignment: a ridge regression leads from the item vectors into the collaborative space
   (`collaborative_vectors`); an item's fused vector is the mean of its collaborative vector and what its content lets
   one expect there. A new item, or one that nobody used, has the expectation alone, and so can be encoded.
2. In-modality distillation: an RQ-VAE encodes the fused vector, and its codes are decoded into both kinds of vectors.
   In either, the likeness of the decoded items of a batch must be distributed as that of the true vectors is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.semantic_ids.autoencoder import Network
from retrieval.semantic_ids.base import Context
from retrieval.semantic_ids.cooccurrence import collaborative_vectors
from retrieval.semantic_ids.rqvae import RQVAE

TEMPERATURE = 0.1


class PRORec(RQVAE):
    """`collaborative_dim`: of the collaborative space. `distillation` weighs the likenesses of stage 2."""

    name = "prorec"
    needs = ("histories",)

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        collaborative_dim: int = 64,
        distillation: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(
            levels, codebook_size, collaborative_dim=collaborative_dim, distillation=distillation, **options
        )

    def prepare(self, vectors: np.ndarray, known: Context, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        used_with = collaborative_vectors(known.histories, len(vectors), self.options["collaborative_dim"], seed)
        seen = np.asarray(used_with.any(axis=1))
        with_one = np.column_stack([vectors, np.ones(len(vectors), np.float32)]).astype(np.float64)
        square = with_one[seen].T @ with_one[seen] + np.eye(with_one.shape[1])
        self.arrays["adapter"] = np.linalg.solve(square, with_one[seen].T @ used_with[seen]).astype(np.float32)
        expected = self.inputs_of(vectors)
        fused = _unit(np.where(seen[:, None], used_with + expected, expected))
        self._teachers = [torch.from_numpy(_unit(vectors)), torch.from_numpy(used_with)]
        return fused, [vectors, used_with]

    def inputs_of(self, vectors: np.ndarray) -> np.ndarray:
        adapter = self.arrays["adapter"]  # [D + 1, collaborative]
        return _unit(vectors @ adapter[:-1] + adapter[-1])

    def more_loss(self, network: Network, rows: np.ndarray, squeezed: Tensor, codes: Tensor, decoded: Tensor) -> Tensor:
        loss = squeezed.new_zeros(())
        widths = [teacher.shape[1] for teacher in self._teachers]
        mean, scale = (torch.from_numpy(self.arrays[f"target_{name}"]) for name in ("mean", "scale"))
        for teacher, student in zip(self._teachers, (decoded * scale + mean).split(widths, dim=1), strict=True):
            true = teacher[rows]
            known = true.any(dim=1)
            if known.sum() < 2:
                continue
            true, made = true[known], F.normalize(student[known], dim=1)
            wanted = (true @ true.T / TEMPERATURE).softmax(dim=1)
            got = (made @ made.T / TEMPERATURE).log_softmax(dim=1)
            loss = loss + self.options["distillation"] * F.kl_div(got, wanted, reduction="batchmean")
        return loss


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
