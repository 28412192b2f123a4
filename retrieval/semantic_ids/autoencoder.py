"""What the learned tokenizers share: an encoder, a bottleneck of codes, a decoder, and their resumable training.

The vectors are centred and brought to unit variance, so that the reconstruction loss is the share of the variance that
the codes lose: 1 is no better than the mean, 0 is perfect.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.files import write_atomically
from retrieval.semantic_ids.base import Context, Progress, Tokenizer

CHECKPOINT_EVERY = 20  # epochs
WARMUP = 0.1  # of the epochs: without the bottleneck, so that the codebooks start where the items will lie
ROWS_AT_ONCE = 65536


class Network(nn.Module):
    """[n, width] -> latent [n, latent] -> bottleneck -> [n, target]."""

    def __init__(self, width: int, hidden: int, latent: int, target: int, bottleneck: nn.Module) -> None:
        super().__init__()
        self.encoder = _mlp(width, hidden, latent)
        self.bottleneck = bottleneck
        self.decoder = _mlp(latent, hidden, target)


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
    )


class AutoencoderTokenizer(Tokenizer):
    """A subclass gives the bottleneck; it may add losses, and encode or reconstruct something else than the vectors.

    hidden: width of the two hidden layers on either side. epochs: passes over the catalog.
    """

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        hidden: int = 256,
        epochs: int = 100,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        **options: Any,
    ) -> None:
        told = {"hidden": hidden, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
        super().__init__(levels, codebook_size, **told, **options)
        if min(hidden, epochs, batch_size) < 1 or learning_rate <= 0:
            raise ValueError(f"{told}: all of them must be positive")

    # -- what a subclass gives -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def latent(self) -> int:
        """Width of the bottleneck."""

    @abstractmethod
    def make_bottleneck(self, items: int) -> nn.Module: ...

    @abstractmethod
    def squeeze(self, bottleneck: Any, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """latent [B, latent] -> what is left of it after the bottleneck, a loss, codes [B, L]."""

    @abstractmethod
    def codes_of(self, latent: np.ndarray) -> np.ndarray:
        """latent [n, latent] -> codes int64 [n, L], with what `learnt` left in `arrays`."""

    @abstractmethod
    def latent_of(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [n, L] -> [n, latent]."""

    def prepare(self, vectors: np.ndarray, known: Context, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Before training: what to encode [N, width], and what to reconstruct side by side, the vectors first."""
        return vectors, [vectors]

    def begin_epoch(self, network: Network, epoch: int, seed: int) -> None:
        """Called before every epoch that has the bottleneck; the seed is another for each."""

    def more_loss(self, network: Network, rows: np.ndarray, squeezed: Tensor, codes: Tensor, decoded: Tensor) -> Tensor:
        """Losses besides reconstruction and the bottleneck's own."""
        return squeezed.new_zeros(())

    def learnt(self, network: Network, latent: np.ndarray) -> np.ndarray:
        """After training, with the latents [N, latent] of the items: keep the bottleneck in `arrays`, return codes."""
        return self.codes_of(latent)

    def inputs_of(self, vectors: np.ndarray) -> np.ndarray:
        """What to encode of new items: [n, D] -> [n, width]."""
        return vectors

    # -- what all of them do -------------------------------------------------------------------------------------------

    def fit(
        self,
        vectors: np.ndarray,
        seed: int = 0,
        context: Context | None = None,
        *,
        checkpoint_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        vectors, known = self.check_fit(vectors, context)
        self.arrays = {}
        inputs, targets = self.prepare(vectors, known, seed)
        for name, blocks in (("input", [inputs]), ("target", targets)):
            means, scales = zip(*map(_mean_and_scale, blocks), strict=True)
            self.arrays |= {f"{name}_mean": np.concatenate(means), f"{name}_scale": np.concatenate(scales)}
        self.arrays["width"] = np.array([vectors.shape[1]], np.int64)
        x = torch.from_numpy(self._standard("input", inputs))
        y = torch.from_numpy(self._standard("target", np.concatenate(targets, axis=1)))
        with torch.random.fork_rng(devices=[]):  # the caller's generator is not ours to move
            torch.manual_seed(seed)
            bottleneck = self.make_bottleneck(len(vectors))
            network = Network(x.shape[1], self.options["hidden"], self.latent, y.shape[1], bottleneck)
            fingerprint = _fingerprint(self.name, self.options, seed, x.numpy(), y.numpy(), *known.histories)
            path = checkpoint_dir / "checkpoint.pt" if checkpoint_dir is not None else None
            self._train(network, x, y, seed, path, fingerprint, progress)
        for part in ("encoder", "decoder"):
            for name, weight in getattr(network, part).state_dict().items():
                self.arrays[f"{part}.{name}"] = weight.numpy().copy()
        return self.learnt(network, self._latents(inputs))

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> np.ndarray:
        self.check_fitted()
        return self.codes_of(self._latents(self.inputs_of(self.check_encode(vectors, int(self.arrays["width"][0])))))

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        self.check_fitted()
        decoded = self._apply("decoder", self.latent_of(np.asarray(codes, np.int64)).astype(np.float32))
        vectors = decoded * self.arrays["target_scale"] + self.arrays["target_mean"]
        return vectors[:, : int(self.arrays["width"][0])]

    def _train(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        seed: int,
        path: Path | None,
        fingerprint: str,
        progress: Progress | None,
    ) -> None:
        options = self.options
        epochs, batch_size = options["epochs"], min(options["batch_size"], len(x))
        optimizer = torch.optim.AdamW(network.parameters(), lr=options["learning_rate"], weight_decay=1e-4)
        epoch = _resume(path, fingerprint, network, optimizer)
        warm = int(WARMUP * epochs)
        network.train()
        while epoch < epochs:
            # Everything random in an epoch follows from (seed, epoch), so resuming needs no generator state.
            mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
            torch.manual_seed(mixed)
            if epoch >= warm:
                if epoch == warm:  # the first pass through the bottleneck sets up its codebooks: show it many items
                    with torch.no_grad():
                        self.squeeze(network.bottleneck, network.encoder(x[torch.randperm(len(x))[:ROWS_AT_ONCE]]))
                self.begin_epoch(network, epoch, mixed)
            for group in optimizer.param_groups:
                group["lr"] = options["learning_rate"] * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))
            for rows in torch.randperm(len(x)).split(batch_size):
                latent = network.encoder(x[rows])
                if epoch < warm:
                    loss = F.mse_loss(network.decoder(latent), y[rows])
                else:
                    squeezed, loss, codes = self.squeeze(network.bottleneck, latent)
                    decoded = network.decoder(squeezed)
                    loss = loss + F.mse_loss(decoded, y[rows])
                    loss = loss + self.more_loss(network, rows.numpy(), squeezed, codes, decoded)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            epoch += 1
            if path is not None and (epoch % CHECKPOINT_EVERY == 0 or epoch == epochs):
                state = {"fingerprint": fingerprint, "epoch": epoch}
                state |= {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                write_atomically(path, lambda temporary, state=state: torch.save(state, temporary))  # type: ignore[misc]
            if progress is not None:
                progress(epoch, epochs)
        network.eval()

    def _latents(self, inputs: np.ndarray) -> np.ndarray:
        return self._apply("encoder", self._standard("input", inputs))

    def _standard(self, name: str, array: np.ndarray) -> np.ndarray:
        scale = self.arrays[f"{name}_scale"]
        return ((array - self.arrays[f"{name}_mean"]) / np.where(scale > 0, scale, 1.0)).astype(np.float32)

    def _apply(self, part: str, x: np.ndarray) -> np.ndarray:
        weights = {name.removeprefix(f"{part}."): a for name, a in self.arrays.items() if name.startswith(f"{part}.")}
        width, hidden = weights["0.weight"].shape[1], weights["0.weight"].shape[0]
        network = _mlp(width, hidden, len(weights["4.bias"]))
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        with torch.no_grad():
            parts = [network(part_).numpy() for part_ in torch.from_numpy(x).split(ROWS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, len(weights["4.bias"])), np.float32)


def _mean_and_scale(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D], and D times the number that brings the columns to unit variance on average; 0 if all rows are one."""
    mean = array.mean(axis=0, dtype=np.float64)
    scale = math.sqrt(float(((array - mean) ** 2).mean()))
    return mean.astype(np.float32), np.full(array.shape[1], scale if scale > 1e-6 else 0.0, np.float32)


def _fingerprint(name: str, options: dict[str, Any], seed: int, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([name, options, seed], sort_keys=True).encode())
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _resume(path: Path | None, fingerprint: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The epoch to go on with. Raises ValueError for a checkpoint of another fit."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ValueError(f"{path} belongs to another fit (other data, options or seed): delete it")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])
