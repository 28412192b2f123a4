"""Train the built-in music decoder on scores and the embeddings of their sound.

    python -m diffusion.decoders.music_training PAIRS OUT --steps 600

PAIRS holds `.npz` files of scores beside embeddings, as `python -m mmrec.datasets.music_pairs` makes them. The
embeddings the decoder will be given are dreamt and come over a linear bridge, so in training they are blended with a
neighbour's, noised, and at times left out altogether (which classifier-free guidance needs).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from diffusion.checkpoint import Checkpoint
from diffusion.decoders.base import check_embeddings
from diffusion.decoders.builtin_music import BuiltinMusicDecoder, MusicDecoderConfig, MusicTransformer
from diffusion.decoders.score import HEADER, START, Score, decode_score, encode_score, step_features

HEADER_WEIGHT = 2.0  # in the loss: a wrong instrument is heard more than a wrong note


@dataclass(frozen=True)
class MusicTrainingConfig:
    """How long and how hard; the defaults are those of the shipped weights."""

    decoder: MusicDecoderConfig = field(default_factory=MusicDecoderConfig)
    steps: int = 600
    batch: int = 32
    rate: float = 1.5e-3
    weight_decay: float = 0.1
    drop: float = 0.1  # how often the embedding is left out
    noise: float = 0.5  # the most noise, as a part of a normalised embedding's spread
    blend: float = 0.4  # the most a neighbour's embedding is mixed in
    neighbours: int = 8
    average: float = 0.998  # decay of the average of the weights that is kept
    save_every: int = 200


def train_music_decoder(
    scores: Sequence[Score],
    embeddings: np.ndarray,
    config: MusicTrainingConfig | None = None,
    *,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    start: BuiltinMusicDecoder | None = None,
) -> BuiltinMusicDecoder:
    """Train a decoder on `scores` and the embeddings float32 `[N, dim]` of their sound.

    `start` is a decoder whose weights are the beginning; its config must be `config.decoder`.
    Killed and called again with the same arguments and `checkpoint_dir`, it continues and ends with the weights of an
    undisturbed run. Raises `ValueError` for data that do not fit, and for a checkpoint of another run.
    """
    config = config or MusicTrainingConfig()
    values = check_embeddings(embeddings, config.decoder.dim, "the music decoder")
    if len(scores) != len(values) or len(scores) < 2:
        raise ValueError(
            f"{len(scores)} scores and {len(values)} embeddings: give at least two of each, as many of both"
        )
    tokens = [encode_score(score) for score in scores]
    features = [step_features(row) for row in tokens]
    accelerator = Accelerator()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MusicTransformer(config.decoder)
    if start is not None:
        if start.config != config.decoder:
            raise ValueError(f"the decoder to start from is {start.config}, the one to train {config.decoder}")
        network.load_state_dict(start.network.state_dict())
    network.mean.copy_(torch.from_numpy(values.mean(axis=0)))
    network.scale.copy_(torch.from_numpy(values.std(axis=0)).clamp_min(1e-3))
    optimizer = torch.optim.AdamW(
        network.parameters(), config.rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    run = _mark(tokens, values, network, config, seed)
    checkpoint = Checkpoint(checkpoint_dir, run, accelerator.mixed_precision) if checkpoint_dir else None
    first = checkpoint.load(network, optimizer, average) if checkpoint else 0
    network.train()
    model, optimizer = accelerator.prepare(network, optimizer)
    average = {name: value.to(accelerator.device) for name, value in average.items()}
    normalised = network.normalise(torch.from_numpy(values).to(accelerator.device))  # [N, dim]
    near = torch.topk(
        normalised @ normalised.T, min(config.neighbours + 1, len(values)), dim=1
    ).indices  # [N, k], self too
    for step in range(first, config.steps):
        rows = _batch(tokens, step, config.batch, seed)
        target, known_features, inputs = _pad(
            [tokens[i] for i in rows], [features[i] for i in rows], accelerator.device
        )
        condition, known = _disturb(normalised, near, rows, config, seed, step)
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _schedule(step, config.steps)
        with torch.random.fork_rng(), accelerator.autocast():
            torch.manual_seed(seed * 1_000_003 + step)  # of dropout
            logits = model(inputs, known_features, network.context(condition, known))  # [B, T, V]
        loss = F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=-1, reduction="none")  # [B, T]
        weight = (target >= 0).float()
        weight[:, : len(HEADER)] *= HEADER_WEIGHT
        accelerator.backward((loss * weight).sum() / weight.sum())
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(config.average, (1 + step) / (10 + step))
        for name, current in network.state_dict().items():
            average[name].lerp_(current, 1 - decay)
        done = step + 1
        if checkpoint and accelerator.is_main_process and (done % config.save_every == 0 or done == config.steps):
            checkpoint.save(done, network, optimizer, average)
        if progress:
            progress(done, config.steps)
    network.load_state_dict({name: value.half().float() for name, value in average.items()})  # as they will be saved
    return BuiltinMusicDecoder(network.cpu())


def load_pairs(folder: Path) -> tuple[list[Score], np.ndarray]:
    """Read (scores, embeddings float32 `[N, dim]`) from the `.npz` files in `folder`.

    A file holds `tokens` (all scores end to end), `lengths` and `embeddings`. Raises `FileNotFoundError` without files.
    """
    scores: list[Score] = []
    embeddings = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as shard:
            scores += [decode_score(part) for part in np.split(shard["tokens"], np.cumsum(shard["lengths"])[:-1])]
            embeddings.append(shard["embeddings"])
    if not scores:
        raise FileNotFoundError(f"no .npz in {folder}: make some with python -m mmrec.datasets.music_pairs {folder}")
    return scores, np.concatenate(embeddings).astype(np.float32)


def _batch(tokens: Sequence[np.ndarray], step: int, size: int, seed: int) -> np.ndarray:
    """Return the rows of a step: every epoch is a new order, cut so that a batch holds scores of similar length."""
    per_epoch = -(-len(tokens) // size)
    epoch, place = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    lengths = np.array([len(row) for row in tokens]) * rng.uniform(0.8, 1.25, len(tokens))
    batches = np.array_split(np.argsort(lengths, kind="stable"), per_epoch)
    return batches[rng.permutation(per_epoch)[place]]


def _pad(tokens: list[np.ndarray], features: list[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return targets [B, T] (-1 where there is none), features [B, T, 4] and inputs [B, T]."""
    length = max(len(row) for row in tokens)
    target = np.full((len(tokens), length), -1, np.int64)
    inputs = np.full((len(tokens), length), START, np.int64)
    padded = np.zeros((len(tokens), length, 4), np.int64)
    for index, (row, known) in enumerate(zip(tokens, features, strict=True)):
        target[index, : len(row)] = row
        inputs[index, 1 : len(row)] = row[:-1]
        padded[index, : len(row)] = known
    return tuple(torch.from_numpy(array).to(device) for array in (target, padded, inputs))  # type: ignore[return-value]


def _disturb(
    normalised: Tensor, near: Tensor, rows: np.ndarray, config: MusicTrainingConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return the embeddings of `rows` [B, dim] as a bridge might give them, and which of them are known [B]."""
    rng = np.random.default_rng([seed, step, 1])
    device = normalised.device

    def uniform(most: float) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, (len(rows), 1)).astype(np.float32)).to(device)

    own = normalised[torch.from_numpy(rows).to(device)]
    other = normalised[
        near[torch.from_numpy(rows).to(device), torch.from_numpy(rng.integers(0, near.shape[1], len(rows)))]
    ]
    noise = torch.from_numpy(rng.standard_normal(own.shape).astype(np.float32)).to(device)
    mixed = own.lerp(other, uniform(config.blend)) + uniform(config.noise) * noise
    mixed = F.normalize(mixed, dim=-1) * mixed.shape[1] ** 0.5
    return mixed, torch.from_numpy(rng.random(len(rows)) >= config.drop).to(device)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a half cosine to a hundredth."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _mark(
    tokens: list[np.ndarray], values: np.ndarray, network: MusicTransformer, config: MusicTrainingConfig, seed: int
) -> str:
    digest = hashlib.sha256(json.dumps([asdict(config), seed], sort_keys=True).encode())
    weights = [value.numpy() for value in network.state_dict().values()]
    for array in (*tokens, values, *weights):
        digest.update(array.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Train on a folder of pairs and save the decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of .npz files made by mmrec.datasets.music_pairs")
    parser.add_argument("out", type=Path, help="folder the decoder is saved in; checkpoints go to OUT/checkpoint")
    parser.add_argument("--steps", type=int, default=MusicTrainingConfig.steps)
    parser.add_argument("--rate", type=float, default=MusicTrainingConfig.rate)
    parser.add_argument("--start", type=Path, help="folder of a decoder whose weights are the beginning")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scores, embeddings = load_pairs(options.pairs)

    def report(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"step {done} of {total}", flush=True)

    config = MusicTrainingConfig(steps=options.steps, rate=options.rate)
    start = BuiltinMusicDecoder.from_pretrained(options.start) if options.start else None
    decoder = train_music_decoder(
        scores,
        embeddings,
        config,
        seed=options.seed,
        checkpoint_dir=options.out / "checkpoint",
        progress=report,
        start=start,
    )
    decoder.save_pretrained(options.out)


if __name__ == "__main__":
    main()
