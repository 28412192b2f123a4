"""Train the built-in picture decoder: an autoencoder of the pictures, then a flow from embeddings to its latents.

The flow is taught to be forgiving, because the embeddings it will be given are dreamt, and came over a linear bridge:
in training a condition is blended with a neighbour's, shrunk towards its main directions as a ridge regression shrinks,
and noised. With `embed`, the encoder that made the embeddings, every picture is also shown recoloured, turned, mirrored
and resized, with the embedding that belongs to what is shown; that is what teaches colour apart from shape.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor, nn

from diffusion.decoders.base import check_embeddings
from diffusion.decoders.builtin_image import (
    BuiltinImageDecoder,
    ImageDecoderConfig,
    LatentFlow,
    unit_rows,
)

Embed = Callable[[list[Image.Image]], np.ndarray]
Progress = Callable[[int, int], None]
FOLDS = 8  # of the ridge regression: a picture's guess in training comes from weights that never saw the picture
BLOCK = 64  # pictures whose variations are made and saved together


@dataclass(frozen=True)
class ImageTrainingConfig:
    """How long and how hard; the defaults are those of the shipped weights."""

    decoder: ImageDecoderConfig = field(default_factory=ImageDecoderConfig)
    variations: int = 5  # of every picture, if the trainer is given the encoder
    autoencoder_steps: int = 1200
    autoencoder_batch: int = 16
    autoencoder_rate: float = 1e-3
    flow_steps: int = 5000
    flow_batch: int = 64
    flow_rate: float = 1e-3
    save_every: int = 200
    average: float = 0.998  # decay of the average of the flow's weights that is kept


def train_image_decoder(
    images: Sequence[str | Path],
    embeddings: np.ndarray,
    config: ImageTrainingConfig | None = None,
    *,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    embed: Embed | None = None,
    start: BuiltinImageDecoder | None = None,
) -> BuiltinImageDecoder:
    """Train a decoder on picture files and their embeddings float32 `[N, dim]`.

    `embed` turns a list of pictures into embeddings of the same space, for variations. `start` is a decoder whose
    weights are the beginning (same config). Killed and called again with the same arguments and `checkpoint_dir`, it
    goes on where it was and ends with the same weights. Raises `ValueError` for embeddings that do not fit, an
    unreadable picture, or a checkpoint of another run.
    """
    config = config or ImageTrainingConfig()
    values = check_embeddings(embeddings, config.decoder.dim, "train_image_decoder")
    if len(values) != len(images) or len(values) < 2:
        raise ValueError(f"need at least two pictures and one embedding each: {len(images)} and {len(values)} given")
    if start is not None and start.config != config.decoder:
        raise ValueError("the decoder to start from has another config than the one to train")
    if checkpoint_dir is not None:
        _claim(
            checkpoint_dir, [str(len(images)), json.dumps(asdict(config)), str(seed), str(embed is not None)], values
        )

    torch.manual_seed(seed)
    decoder = BuiltinImageDecoder(config.decoder)
    if start is not None:
        decoder.load_state_dict(start.state_dict())
    accelerator = Accelerator()
    decoder.to(accelerator.device)
    total = config.autoencoder_steps + config.flow_steps + len(images)
    report = progress or (lambda done, total: None)

    pixels, vectors, owner = _collect(images, values, config, seed, checkpoint_dir, embed, lambda n: report(n, total))
    loop = _Loop(accelerator, seed, checkpoint_dir, config.save_every)
    if start is None:
        decoder.autoencoder.begin(_pictures(pixels[:: max(1, len(pixels) // 1000)], accelerator.device))
    _train_autoencoder(decoder, pixels, config, loop, lambda n: report(len(images) + n, total))
    latents = decoder.autoencoder.settle(_encode_all(decoder, pixels, loop))
    if start is None:
        decoder.reader.fit(torch.from_numpy(values).to(accelerator.device))
    conditions = decoder.reader(torch.from_numpy(vectors).to(accelerator.device))
    weights = _fit_guess(decoder.flow, conditions, latents, torch.from_numpy(owner).to(accelerator.device))
    tricks = _ConditionTricks(conditions, owner, seed)
    _train_flow(
        decoder,
        latents,
        weights,
        tricks,
        config,
        loop,
        lambda n: report(len(images) + config.autoencoder_steps + n, total),
    )
    return decoder.cpu().eval()


# --- pictures ---------------------------------------------------------------------------------------------------------


def read_picture(path: str | Path, side: int) -> Image.Image:
    """The picture as a `side` × `side` RGB square, its shape kept, on white."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except OSError as error:
        raise ValueError(f"{path} is no readable picture ({error}); leave it out of the training") from error
    white = Image.new("RGBA", picture.size, "white")
    return ImageOps.pad(Image.alpha_composite(white, picture).convert("RGB"), (side, side), color="white")


def vary(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture recoloured (hue, saturation, lightness), turned up to 12°, mirrored, resized and moved, on white."""
    if rng.random() < 0.6:
        turn, depth, light = int(rng.integers(256)), rng.uniform(0.7, 1.2), rng.uniform(0.85, 1.1)
        hsv = np.asarray(picture.convert("HSV"), dtype=np.float32)  # [S, S, 3]
        hsv[..., 0] = (hsv[..., 0] + turn) % 256
        white = hsv[..., 1:2] < 12  # a white ground stays white
        hsv[..., 1:] = np.where(white, hsv[..., 1:], hsv[..., 1:] * (depth, light)).clip(0, 255)
        picture = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
    if rng.random() < 0.3:
        picture = ImageOps.mirror(picture)
    angle, side = rng.uniform(-12, 12) * (rng.random() < 0.5), picture.width
    grow = np.exp(rng.uniform(-0.25, 0.08, 2) if rng.random() < 0.5 else np.full(2, rng.uniform(-0.2, 0.05)))
    shift = rng.uniform(-0.04, 0.04, 2) * side
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    inverse = np.array([[cosine, sine], [-sine, cosine]]) / grow[:, None]
    offset = side / 2 - inverse @ (side / 2 + shift)
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white")


def _collect(
    images: Sequence[str | Path],
    values: np.ndarray,
    config: ImageTrainingConfig,
    seed: int,
    checkpoint_dir: Path | None,
    embed: Embed | None,
    report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels uint8 `[M, S, S, 3]`, embeddings float32 `[M, dim]` and picture index int64 `[M]`, variations included."""
    side = config.decoder.picture
    parts = []
    for begin in range(0, len(images), BLOCK):
        saved = checkpoint_dir / f"pictures-{begin:06d}.npz" if checkpoint_dir is not None else None
        if saved is not None and saved.is_file():
            with np.load(saved, allow_pickle=False) as archive:
                parts.append((archive["pixels"], archive["vectors"], archive["owner"]))
            continue
        block = range(begin, min(begin + BLOCK, len(images)))
        pictures = [read_picture(images[i], max(side, 128)) for i in block]
        vectors, owner = [values[list(block)]], list(block)
        if embed is not None:
            varied = [
                vary(pictures[i - begin], np.random.default_rng([seed, i, k]))
                for k in range(config.variations)
                for i in block
            ]
            vectors.append(check_embeddings(embed(varied), config.decoder.dim, "embed"))
            pictures, owner = pictures + varied, owner * (1 + config.variations)
        pixels = np.stack([np.asarray(p.resize((side, side), Image.Resampling.LANCZOS)) for p in pictures])
        parts.append((pixels, np.concatenate(vectors), np.array(owner, dtype=np.int64)))
        if saved is not None:
            temporary = saved.with_suffix(".tmp")
            with temporary.open("wb") as out:
                np.savez(out, pixels=parts[-1][0], vectors=parts[-1][1], owner=parts[-1][2])
            os.replace(temporary, saved)
        report(block[-1] + 1)
    pixels, vectors, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return pixels, vectors, owner


def _claim(checkpoint_dir: Path, options: list[str], values: np.ndarray) -> None:
    """Mark the folder as this run's, or raise `ValueError` if it is another's."""
    mark = hashlib.sha256("\n".join(options).encode() + values.tobytes()).hexdigest()
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    file = checkpoint_dir / "run.txt"
    if not file.is_file():
        file.with_suffix(".tmp").write_text(mark, encoding="utf-8")
        os.replace(file.with_suffix(".tmp"), file)
    elif file.read_text(encoding="utf-8") != mark:
        raise ValueError(f"{checkpoint_dir} holds the checkpoints of another run: remove it or name another folder")


# --- the loop of both stages ------------------------------------------------------------------------------------------


@dataclass
class _Loop:
    """Adam with a warm-up and a cosine, resumable: the randomness of a step is a function of seed, stage and step."""

    accelerator: Accelerator
    seed: int
    checkpoint_dir: Path | None
    save_every: int

    def run(
        self,
        stage: str,
        module: nn.Module,
        loss_of: Callable[[np.random.Generator, torch.Generator], Tensor],
        steps: int,
        rate: float,
        average: float | None,
        report: Callable[[int], None],
    ) -> None:
        """Minimise `loss_of` over `module`, which ends holding the trained (with `average`, the averaged) weights."""
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
        warm = max(1, min(200, steps // 10))
        kept = {name: p.detach().clone() for name, p in module.named_parameters()} if average is not None else {}
        file = self.checkpoint_dir / f"{stage}.pt" if self.checkpoint_dir is not None else None
        begin = 0
        if file is not None and file.is_file():
            state = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            kept, begin = state["kept"], int(state["step"])
        stage_number = int.from_bytes(hashlib.sha256(stage.encode()).digest()[:4], "little")
        module.train()
        for step in range(begin, steps):
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / warm) * max(cosine, 0.01)
            rng = np.random.default_rng([self.seed, stage_number, step])
            generator = torch.Generator(self.accelerator.device).manual_seed(int(rng.integers(2**62)))
            loss = loss_of(rng, generator)
            self.accelerator.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                decay = min(average, (1 + step) / (10 + step))
                for name, parameter in module.named_parameters():
                    kept[name].lerp_(parameter.detach(), 1 - decay)
            done = step + 1
            if file is not None and (done % self.save_every == 0 or done == steps):
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "kept": kept, "step": done}
                torch.save(state, file.with_suffix(".tmp"))
                os.replace(file.with_suffix(".tmp"), file)
            if done % 10 == 0 or done == steps:
                report(done)
        module.load_state_dict(kept, strict=False)
        module.eval()

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 products where the processor has them."""
        device = self.accelerator.device.type
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() if device == "cpu" else torch.cuda.is_bf16_supported()
        return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


# --- stage 1: the autoencoder -----------------------------------------------------------------------------------------


def _train_autoencoder(
    decoder: BuiltinImageDecoder,
    pixels: np.ndarray,
    config: ImageTrainingConfig,
    loop: _Loop,
    report: Callable[[int], None],
) -> None:
    """L1 of pixels and of their differences (edges), with noised latents."""
    autoencoder = decoder.autoencoder.to(memory_format=torch.channels_last)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = _pictures(pixels[rng.integers(len(pixels), size=config.autoencoder_batch)], loop.accelerator.device)
        if rng.random() < 0.5:
            batch = batch.flip(3)
        with loop.autocast():
            latents = autoencoder.encode(batch)
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            strength = 0.3 * torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
            drawn = autoencoder.decode(latents + strength * noise).float()
        return picture_loss(drawn, batch)

    steps, rate = config.autoencoder_steps, config.autoencoder_rate
    loop.run("autoencoder", autoencoder, loss_of, steps, rate, config.average, report)


def picture_loss(drawn: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of pixels and of their differences to neighbours, at full, half and quarter size."""
    loss = torch.zeros((), device=drawn.device)
    for _ in range(3):
        error = drawn - real
        loss = loss + error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        drawn, real = F.avg_pool2d(drawn, 2), F.avg_pool2d(real, 2)
    return loss


def _pictures(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 `[B, S, S, 3]` to float32 `[B, 3, S, S]` in [-1, 1], channels last in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _encode_all(decoder: BuiltinImageDecoder, pixels: np.ndarray, loop: _Loop) -> Tensor:
    encode, device = decoder.autoencoder.encode, loop.accelerator.device
    with loop.autocast():
        parts = [encode(_pictures(pixels[i : i + 64], device)).float() for i in range(0, len(pixels), 64)]
    return torch.cat(parts)


# --- stage 2: the flow ------------------------------------------------------------------------------------------------


def _fit_guess(flow: LatentFlow, conditions: Tensor, latents: Tensor, owner: Tensor) -> Tensor:
    """Fit the flow's ridge regression on everything; return the weights `[FOLDS, K, C·L·L]` that each left a fold out.

    Picture i belongs to fold i % FOLDS, all its variations with it.
    """
    targets = latents.flatten(1).double()  # [M, C·L·L]
    inputs, mean, fold = conditions.double(), targets.mean(dim=0), owner % FOLDS
    gram, cross = inputs.T @ inputs, inputs.T @ (targets - mean)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * gram.diagonal().mean()

    def left_out(strength: float) -> Tensor:
        solved = []
        for k in range(FOLDS):
            x, y = inputs[fold == k], targets[fold == k] - mean
            solved.append(torch.linalg.solve(gram - x.T @ x + strength * eye, cross - x.T @ y))
        return torch.stack(solved)

    def error(weights: Tensor) -> float:
        misses = [(inputs[fold == k] @ weights[k] + mean - targets[fold == k]).square().sum() for k in range(FOLDS)]
        return float(torch.stack(misses).sum())

    strength = min((0.01, 0.03, 0.1, 0.3, 1.0, 3.0), key=lambda value: error(left_out(value)))
    flow.guess_mean.copy_(mean)
    flow.guess_weight.copy_(torch.linalg.solve(gram + strength * eye, cross))
    return left_out(strength).float()


class _ConditionTricks:
    """Picks training rows and makes their conditions as imperfect as those the decoder will meet."""

    def __init__(self, conditions: Tensor, owner: np.ndarray, seed: int) -> None:
        self.conditions, self.owner = conditions, owner
        self.rows = [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]
        plain = conditions[[rows[0] for rows in self.rows]]  # the pictures themselves, [N, K]
        likeness = plain @ plain.T
        likeness.fill_diagonal_(-torch.inf)
        self.neighbours = likeness.topk(min(8, len(plain) - 1), dim=1).indices.cpu().numpy()  # [N, 8]
        self.plain = plain
        self.variance = conditions.var(dim=0)

    def draw(self, batch: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Row numbers int64 `[batch]`, a third of them the pictures themselves, and their conditions `[batch, K]`."""
        device = self.conditions.device

        def uniform(high: float) -> Tensor:
            return torch.rand(batch, 1, generator=generator, device=device) * high

        picture = rng.integers(len(self.rows), size=batch)
        which = np.where(rng.random(batch) < 1 / 3, 0, rng.integers(1 << 30, size=batch))
        rows = np.array([self.rows[i][w % len(self.rows[i])] for i, w in zip(picture, which, strict=True)])
        condition = self.conditions[rows]
        other = self.neighbours[picture, rng.integers(self.neighbours.shape[1], size=batch)]
        blend = uniform(0.4) * (uniform(1) < 0.5)
        condition = torch.lerp(condition, self.plain[other], blend)
        ridge = torch.exp(uniform(1) * np.log(1000.0)) * 1e-3 * self.variance.max()
        shrunk = unit_rows(condition * self.variance / (self.variance + ridge))
        condition = torch.where(uniform(1) < 0.5, shrunk, condition)
        noise = torch.randn(condition.shape, generator=generator, device=device)
        return rows, unit_rows(condition + uniform(0.4) * noise)


def _train_flow(
    decoder: BuiltinImageDecoder,
    latents: Tensor,
    weights: Tensor,
    tricks: _ConditionTricks,
    config: ImageTrainingConfig,
    loop: _Loop,
    report: Callable[[int], None],
) -> None:
    """Flow matching: from noise n to latent x along (1 - t) n + t x the velocity is x - n; times are logit-normal."""
    flow, device = decoder.flow, latents.device

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows, condition = tricks.draw(config.flow_batch, rng, generator)
        real = latents[rows]
        fold = torch.from_numpy(tricks.owner[rows] % FOLDS).to(device)
        flat = torch.empty(len(rows), weights.shape[2], device=device)
        for k in range(FOLDS):
            flat[fold == k] = condition[fold == k] @ weights[k] + flow.guess_mean
        given = (torch.rand(len(rows), 1, generator=generator, device=device) >= 0.1).float()
        time = torch.randn(len(rows), generator=generator, device=device).sigmoid()
        noise = torch.randn(real.shape, generator=generator, device=device)
        mixed = torch.lerp(noise, real, time[:, None, None, None])
        guess = (flat * given).view_as(real)
        with loop.autocast():
            velocity = flow(mixed, time, condition * given, guess)
        return F.mse_loss(velocity.float(), real - noise)

    loop.run("flow", flow, loss_of, config.flow_steps, config.flow_rate, config.average, report)
