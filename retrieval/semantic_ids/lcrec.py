"""Uniform assignment: an RQ-VAE whose last codes are given out evenly.

LC-Rec (Zheng et al., "Adapting Large Language Models by Integrating Collaborative Semantics for Recommendation", ICDE
2024, section III-B, uniform semantic mapping): the codes of the last level are the solution of an optimal transport
problem, found by Sinkhorn-Knopp, in which every code gets as many items as every other, so that few items end up on the
same codes. There it is solved for every batch of the training; here once for the whole catalog, the assignment and the
codewords in turn, after the RQ-VAE is trained, so that the codes are even over the catalog itself. A new item takes the
nearest codeword, as there.
"""

from __future__ import annotations

import numpy as np

from retrieval.semantic_ids.autoencoder import Network
from retrieval.semantic_ids.residual_kmeans import quantize_residuals, sum_codewords
from retrieval.semantic_ids.rqvae import RQVAE

ROUNDS = 5
EPSILONS = (0.3, 0.1, 0.03, 0.01, 0.003)  # of the range of the distances; the last is LC-Rec's
ITERATIONS = 20  # for each


class LCRec(RQVAE):
    """The options of `RQVAE`."""

    name = "lcrec"

    def learnt(self, network: Network, latent: np.ndarray) -> np.ndarray:
        super().learnt(network, latent)
        before, last = self.codebooks[:-1], self.codebooks[-1].astype(np.float64)
        codes = quantize_residuals(latent, before)
        residuals = (latent - (sum_codewords(codes, before) if before else 0.0)).astype(np.float64)
        for _ in range(ROUNDS):
            given = uniform_assignment(residuals, last)
            for code in np.unique(given):
                last[code] = residuals[given == code].mean(axis=0)
        self.arrays[f"codebook_{self.levels - 1}"] = last.astype(np.float32)
        return np.column_stack([codes, given])


def uniform_assignment(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """A center int64 [n] per point [n, d], each of the centers [k, d] about equally often, near at hand where possible.

    The largest entry per row of the entropic optimal transport plan between both sides with even weights, by Sinkhorn-
    Knopp (Cuturi 2013) in its dual form: every center has a price, raised while it has too many takers. The entropy is
    lowered in steps, each starting from the prices of the one before.
    """
    from scipy.special import softmax

    far = (points**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * points @ centers.T  # [n, k]
    price = np.zeros(len(centers))
    for epsilon in np.array(EPSILONS) * max(float(np.ptp(far)), 1e-12):
        for _ in range(ITERATIONS):
            takers = softmax(-(far + price) / epsilon, axis=1).sum(axis=0)
            price += epsilon * np.log(np.maximum(takers, 1e-12) * len(centers) / len(points))
    return np.argmin(far + price, axis=1).astype(np.int64)
