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
from retrieval.semantic_ids.kmeans import nearest
from retrieval.semantic_ids.residual_kmeans import quantize_residuals, sum_codewords
from retrieval.semantic_ids.rqvae import RQVAE

ROUNDS = 10
EPSILON = 0.003  # of the range of the distances, as in LC-Rec
ITERATIONS = 100


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

    The largest entry per row of the entropic optimal transport plan between both sides with even weights (Sinkhorn-
    Knopp, Cuturi 2013).
    """
    if len(centers) == 1:
        return nearest(points, centers)
    far = (points**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * points @ centers.T  # [n, k]
    closeness = np.exp(-(far - far.min(axis=1, keepdims=True)) / (EPSILON * max(np.ptp(far), 1e-12)))
    of_centers = np.ones(len(centers))
    for _ in range(ITERATIONS):
        of_points = 1 / (closeness @ of_centers)
        of_centers = len(points) / len(centers) / np.maximum(closeness.T @ of_points, 1e-300)
    return np.argmax(closeness * of_centers, axis=1).astype(np.int64)
