"""Training of the prior and of the regression baseline: one loop, resumable to the last bit on one machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffusion.checkpoint import Checkpoint
from diffusion.examples import Examples
from diffusion.flow import denoised, levels
from diffusion.network import KINDS, Context, Denoiser, PriorConfig
from diffusion.prior import Prior, scaled, visible_tokens, with_dim

Progress = Callable[[int, int], None]
Loss = Callable[[Denoiser, Context, Tensor, Tensor, torch.Generator], Tensor]
EVERYTHING = (frozenset(KINDS),)


def flow_loss(
    network: Denoiser, context: Context, vectors: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of the estimate of x0 [B, R, D] at random noise levels (x0 objective; flow.levels is the path)."""
    x0 = vectors[targets]  # [B, R, D]
    # one uniform draw per batch, spread evenly over its rows (low-discrepancy levels, Kingma et al. 2021, appendix I.1)
    offsets = torch.arange(targets.numel(), device=x0.device).view_as(targets) / targets.numel()
    u = ((torch.rand(1, generator=generator).to(x0.device) + offsets) % 1).unsqueeze(-1)  # [B, R, 1]
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    alpha, sigma = levels(u, network.config.noise_shift)
    x = alpha * x0 + sigma * noise
    visible = visible_tokens(context, EVERYTHING)  # [B, 1, S]
    summary = network.summarise(context, visible)
    correction = network(x.unsqueeze(1), u.squeeze(-1).unsqueeze(1), context, visible, summary).squeeze(1)
    return (denoised(correction, x, alpha, sigma) - x0).square().mean()


class _Step(torch.nn.Module):
    """Reading and loss behind one forward, so that accelerate can wrap it for several devices."""

    def __init__(self, network: Denoiser, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(
        self, tensors: dict[str, Tensor], vectors: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Tensor:
        return self.loss(self.network, self.network.read(**tensors), vectors, targets, generator)


def train_network(
    histories: Sequence[np.ndarray],
    preferences: Sequence[np.ndarray],
    vectors: np.ndarray,
    config: PriorConfig,
    loss: Loss,
    *,
    steers: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> Denoiser:
    """Train a Denoiser with AdamW and return its exponential moving average (decay rising as in Karras et al. 2024)."""
    config = with_dim(config, vectors)
    examples = Examples(histories, preferences, vectors, config, steers, seed)
    accelerator = Accelerator()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Denoiser(config)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    checkpoint = Checkpoint(checkpoint_dir, _fingerprint(examples, config, loss, seed)) if checkpoint_dir else None
    start = checkpoint.load(network, optimizer, average) if checkpoint else 0
    model, optimizer = accelerator.prepare(_Step(network, loss), optimizer)
    average = {name: value.to(accelerator.device) for name, value in average.items()}
    table = torch.from_numpy(scaled(examples.vectors)).to(accelerator.device)
    for step in range(start, config.steps):
        conditions, ordered, targets = examples.batch(step, accelerator.process_index)
        tensors = conditions.tensors(config.dim, accelerator.device)
        tensors["ordered"] = torch.from_numpy(ordered).to(accelerator.device)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + accelerator.process_index)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        value = model(tensors, table, torch.from_numpy(targets).to(accelerator.device), generator)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        for name, current in network.state_dict().items():
            average[name].lerp_(current, 1 - decay)
        done = step + 1
        if checkpoint and accelerator.is_main_process and (done % config.checkpoint_every == 0 or done == config.steps):
            checkpoint.save(done, network, optimizer, average)
        if progress:
            progress(done, config.steps)
    network = Denoiser(config)
    network.load_state_dict(average)
    return network.to(accelerator.device)


def train_prior(
    histories: Sequence[np.ndarray],
    preferences: Sequence[np.ndarray],
    vectors: np.ndarray,
    config: PriorConfig = PriorConfig(),
    *,
    steers: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> Prior:
    """Learn to dream what people like.

    histories: item indices int64 [T] of each person, oldest first; preferences float32 [T] in [-1, 1]; vectors float32
    [N, D], unit length. steers: for "text", "image", "audio", the bridge's output for every item [N, D] (a row of zeros
    or NaN where the item lacks it), used as that steer in training. With checkpoint_dir a killed run goes on where it
    stopped. Raises ValueError for data that do not fit together, and for a checkpoint of another run.
    """
    network = train_network(
        histories, preferences, vectors, config, flow_loss,
        steers=steers, seed=seed, checkpoint_dir=checkpoint_dir, progress=progress,
    )  # fmt: skip
    return Prior(network)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a half cosine to zero."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _fingerprint(examples: Examples, config: PriorConfig, loss: Loss, seed: int) -> str:
    digest = hashlib.sha256(json.dumps([asdict(config), loss.__name__, seed], sort_keys=True).encode())
    for array in (*examples.histories, *examples.preferences, examples.vectors, *examples.steers.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
