"""Training of the prior and of the regression baseline: one loop, resumable to the last bit on one machine.

Under `accelerate launch` every process draws the same batch and takes its own rows of it, so that several processes
learn what one would, but for the rounding of sums.
"""

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
Loss = Callable[[Denoiser, Context, Tensor, Tensor, Tensor], Tensor]
EVERYTHING = (frozenset(KINDS),)


def flow_loss(network: Denoiser, context: Context, x0: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the estimate of x0 [B, R, D] at noise levels u [B, R, 1], which `flow.levels` makes a path."""
    alpha, sigma = levels(u, network.config.noise_shift)
    x = alpha * x0 + sigma * noise
    visible = visible_tokens(context, EVERYTHING)  # [B, 1, S]
    summary = network.summarise(context, visible)
    correction = network(x.unsqueeze(1), u.squeeze(-1).unsqueeze(1), context, visible, summary).squeeze(1)
    return (denoised(correction, x, alpha, sigma) - x0).square().mean()


def draw_noise(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels u [B, R, 1] in [0, 1) and noise [B, R, D] for the targets x0 [B, R, D] of one batch.

    One uniform draw per batch, spread evenly over its rows (low-discrepancy levels, Kingma et al. 2021, appendix I.1).
    """
    people, targets, _ = x0.shape
    offsets = torch.arange(people * targets).view(people, targets, 1) / (people * targets)
    u = (torch.rand(1, generator=generator) + offsets) % 1
    return u, torch.randn(x0.shape, generator=generator)


class _Step(torch.nn.Module):
    """Reading and loss behind one forward, so that accelerate can wrap it for several devices."""

    def __init__(self, network: Denoiser, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, tensors: dict[str, Tensor], x0: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        return self.loss(self.network, self.network.read(**tensors), x0, u, noise)


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
    run = _fingerprint(examples, config, loss, seed)
    checkpoint = Checkpoint(checkpoint_dir, run, accelerator.mixed_precision) if checkpoint_dir else None
    start = checkpoint.load(network, optimizer, average) if checkpoint else 0
    model, optimizer = accelerator.prepare(_Step(network, loss), optimizer)
    average = {name: value.to(accelerator.device) for name, value in average.items()}
    table = torch.from_numpy(scaled(examples.vectors))
    mine = _rows(config.batch_size, accelerator.process_index, accelerator.num_processes)
    share = (mine.stop - mine.start) * accelerator.num_processes / config.batch_size  # gradients are averaged
    for step in range(start, config.steps):
        conditions, ordered, targets = examples.batch(step)
        tensors = conditions.tensors(config.dim)
        tensors["ordered"] = torch.from_numpy(ordered)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009)
        x0 = table[torch.from_numpy(targets)]  # [B, R, D]
        x0, u, noise = (part[mine].to(accelerator.device) for part in (x0, *draw_noise(x0, generator)))
        tensors = {name: value[mine].to(accelerator.device) for name, value in tensors.items()}
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        accelerator.backward(share * model(tensors, x0, u, noise))
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


def _rows(batch: int, process: int, processes: int) -> slice:
    """The rows of a batch that one of the processes takes."""
    if batch < processes:
        raise ValueError(f"batch_size {batch} cannot be shared by {processes} processes; raise it or start fewer")
    return slice(batch * process // processes, batch * (process + 1) // processes)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a half cosine to zero."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _fingerprint(examples: Examples, config: PriorConfig, loss: Loss, seed: int) -> str:
    digest = hashlib.sha256(json.dumps([asdict(config), loss.__name__, seed], sort_keys=True).encode())
    for array in (*examples.histories, *examples.preferences, examples.vectors, *examples.steers.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
