"""The baseline that embarrasses many diffusion recommenders: the prior's own network, trained to the mean taste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.network import Context, Denoiser, PriorConfig
from diffusion.prior import ROWS_AT_ONCE, Conditions, SavedModel
from diffusion.training import EVERYTHING, Progress, train_network, visible_tokens


def _mean(network: Denoiser, context: Context) -> Tensor:
    """The network with no noise to look at and the level fixed at 1. -> [B, 1, D]"""
    visible = visible_tokens(context, EVERYTHING)
    x = context.tokens.new_zeros(len(context.tokens), 1, 1, network.config.dim)
    level = torch.ones(1, 1, 1, device=x.device)
    return network(x, level, context, visible, network.summarise(context, visible)).squeeze(1)


def regression_loss(network: Denoiser, context: Context, x0: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """Squared error to every target x0 [B, R, D]; the minimiser is the mean of what the person likes."""
    return (_mean(network, context) - x0).square().mean()


class RegressionPrior(SavedModel):
    """Predicts one vector per person: the mean of their taste, on the sphere."""

    @torch.no_grad()
    def predict(self, conditions: Conditions) -> np.ndarray:
        """-> float32 [B, D], unit length"""
        parts = [
            _mean(self.network, self.read(conditions, slice(start, start + ROWS_AT_ONCE))[0])[:, 0]
            for start in range(0, len(conditions), ROWS_AT_ONCE)
        ]
        if not parts:
            return np.zeros((0, self.dim), np.float32)
        return nn.functional.normalize(torch.cat(parts), dim=-1).cpu().numpy()


def train_regression(
    histories: Sequence[np.ndarray],
    preferences: Sequence[np.ndarray],
    vectors: np.ndarray,
    config: PriorConfig = PriorConfig(),
    *,
    steers: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> RegressionPrior:
    """Arguments and errors as in diffusion.training.train_prior."""
    network = train_network(
        histories, preferences, vectors, config, regression_loss,
        steers=steers, seed=seed, checkpoint_dir=checkpoint_dir, progress=progress,
    )  # fmt: skip
    return RegressionPrior(network)
