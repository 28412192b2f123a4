"""LETTER: an RQ-VAE that is also told who uses an item, and to spread its codes.

Wang et al., "Learnable Item Tokenization for Generative Recommendation" (CIKM 2024, section 3): besides the RQ-VAE's
own losses (semantic regularization, coarse to fine),

- collaborative regularization (3.2): among the items of a batch, the quantized latent of an item must be most like that
  item's collaborative vector. There it comes from a trained SASRec or LightGCN; here from the co-occurrences in the
  training histories (`collaborative_vectors`). An item without any is left out.
- diversity regularization (3.3): the codewords of a level are grouped evenly by k-means; each used codeword is drawn to
  another one of its group and away from all others, which spreads the codebook, and with it the items, more evenly.
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
from retrieval.semantic_ids.kmeans import kmeans
from retrieval.semantic_ids.lcrec import uniform_assignment
from retrieval.semantic_ids.rqvae import RQVAE

GROUPS = 10
REGROUP_EVERY = 10  # epochs; divides CHECKPOINT_EVERY, so that a resumed fit has the groups of an undisturbed one
TEMPERATURE = 0.1


class LETTER(RQVAE):
    """`collaboration` and `diversity` weigh the two further losses; the rest are options of `RQVAE`."""

    name = "letter"
    needs = ("histories",)
    learnable_codebook = True

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        collaboration: float = 0.1,
        diversity: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(levels, codebook_size, collaboration=collaboration, diversity=diversity, **options)

    def prepare(self, vectors: np.ndarray, known: Context, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        self._used_with = torch.from_numpy(collaborative_vectors(known.histories, len(vectors), self.latent, seed))
        self._mates: list[Tensor] = []
        return vectors, [vectors]

    def begin_epoch(self, network: Network, epoch: int, seed: int) -> None:
        """Group the codewords of every level: `_mates` bool [size, size], the others of a codeword's group."""
        if self._mates and epoch % REGROUP_EVERY:
            return
        self._mates = []
        for layer in network.bottleneck.layers:  # type: ignore[union-attr]
            codebook = layer.codebook.detach().numpy()
            centers = kmeans(codebook, GROUPS, seed % 2**31)
            group = torch.from_numpy(uniform_assignment(codebook, centers))
            self._mates.append((group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool))

    def more_loss(self, network: Network, rows: np.ndarray, squeezed: Tensor, codes: Tensor, decoded: Tensor) -> Tensor:
        collaborative = self._used_with[rows]
        known = collaborative.any(dim=1)
        loss = squeezed.new_zeros(())
        if known.sum() > 1:
            likeness = F.normalize(squeezed[known], dim=1) @ collaborative[known].T / TEMPERATURE  # [B, B]
            loss = self.options["collaboration"] * F.cross_entropy(likeness, torch.arange(len(likeness)))
        for level, layer in enumerate(network.bottleneck.layers):  # type: ignore[arg-type]
            used = codes[:, level].unique()
            mates = self._mates[level][used]  # [used, size]
            used, mates = used[mates.any(dim=1)], mates[mates.any(dim=1)]
            if len(used):
                likeness = layer.codebook[used] @ layer.codebook.T  # [used, size]
                likeness = likeness.scatter(1, used[:, None], -torch.inf)
                mate = torch.multinomial(mates.float(), 1).squeeze(1)
                loss = loss + self.options["diversity"] * F.cross_entropy(likeness, mate)
        return loss
