"""RQ-VAE: an autoencoder whose latent is spelt by residual codebooks that are learned with it.

The item tokenizer of TIGER (Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023, section 3.1),
after Zeghidour et al. 2021 and Lee et al. 2022. The quantizer is that of vector-quantize-pytorch: codebooks start from
k-means, follow their items by moving averages (van den Oord et al. 2017, appendix A.1), and a code that fell out of use
starts again from an item. Gradients pass the quantizer straight through or by the rotation trick (Fifty et al. 2024).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.semantic_ids.autoencoder import AutoencoderTokenizer, Network
from retrieval.semantic_ids.residual_kmeans import quantize_residuals, sum_codewords

DEAD_BELOW = 0.1  # of the even share of a batch


class RQVAE(AutoencoderTokenizer):
    """`latent`: its width. `commitment`: how strongly items are drawn to their codewords. `gradient`: see above."""

    name = "rqvae"
    learnable_codebook = False  # by moving averages; True: by gradients, so that a loss can shape it

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        latent: int = 32,
        commitment: float = 0.25,
        gradient: Literal["rotation", "straight_through"] = "rotation",
        **options: Any,
    ) -> None:
        if gradient not in ("rotation", "straight_through"):
            raise ValueError(f"gradient is {gradient!r}: it must be 'rotation' or 'straight_through'")
        super().__init__(levels, codebook_size, latent=latent, commitment=commitment, gradient=gradient, **options)

    @property
    def latent(self) -> int:
        return int(self.options["latent"])

    @property
    def codebooks(self) -> list[np.ndarray]:
        """One [size, latent] per level."""
        return [self.arrays[f"codebook_{level}"] for level in range(self.levels) if self.arrays]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(codebook) for codebook in self.codebooks)

    def make_bottleneck(self, items: int) -> nn.Module:
        from vector_quantize_pytorch import ResidualVQ

        size = self.size_for(items)
        return ResidualVQ(
            dim=self.latent,
            num_quantizers=self.levels,
            codebook_size=size,
            kmeans_init=True,
            kmeans_iters=20,
            decay=0.95,
            threshold_ema_dead_code=DEAD_BELOW * min(self.options["batch_size"], items) / size,
            commitment_weight=self.options["commitment"],
            rotation_trick=self.options["gradient"] == "rotation",
            learnable_codebook=self.learnable_codebook,
            ema_update=not self.learnable_codebook,
        )

    def squeeze(self, bottleneck: Any, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, losses = bottleneck(latent.unsqueeze(0))  # [1, B, latent], [1, B, L], [1, L]
        return quantized.squeeze(0), losses.sum(), codes.squeeze(0)

    def codes_of(self, latent: np.ndarray) -> np.ndarray:
        return quantize_residuals(latent, self.codebooks)

    def latent_of(self, codes: np.ndarray) -> np.ndarray:
        return sum_codewords(codes, self.codebooks)

    def learnt(self, network: Network, latent: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            for level, layer in enumerate(network.bottleneck.layers):  # type: ignore[arg-type]
                self.arrays[f"codebook_{level}"] = layer.codebook.detach().numpy().copy()
        return self.codes_of(latent)
