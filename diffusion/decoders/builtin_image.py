"""The built-in picture decoder: one picture embedding in, new pictures of the same kind of thing out.

Three parts, small enough to ship and to draw several pictures a second on one core:

1. `EmbeddingReader` turns an embedding into a condition: centre, project on the main directions, half-whiten, unit
   length. Length and fine directions are dropped on purpose: an embedding that came over a bridge has neither right.
2. `LatentFlow` draws an 8 × 8 latent picture from noise under that condition: conditional flow matching (Lipman et
   al. 2023, section 4) with a transformer whose layers are modulated by the condition (Peebles & Xie 2023, section
   3.2; one shared modulation as in PixArt-α, Chen et al. 2024, section 2.3) and classifier-free guidance (Ho & Salimans
   2022). It also reads a ridge regression's guess of the latent, which spares it learning where things lie.
3. `Autoencoder` turns latents into pixels (Rombach et al. 2022, section 3.1), trained with noised latents so that it
   forgives the flow's errors.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.decoders.base import check_embeddings

SHIPPED = Path(__file__).parent / "weights" / "builtin_image"
OUTPUT = 256  # side of the pictures handed out


@dataclass(frozen=True)
class ImageDecoderConfig:
    """Sizes of the three networks, and how a picture is drawn."""

    space: str = "efficientnet_lite0"
    dim: int = 1280
    directions: int = 128  # of the embedding that are read
    picture: int = 64  # side in pixels that is drawn, then enlarged to OUTPUT
    channels: int = 12  # of the latent, which is picture / 8 on a side
    widths: tuple[int, int, int] = (32, 64, 112)  # of the autoencoder at 1/2, 1/4 and 1/8 of the side
    flow_width: int = 224
    flow_layers: int = 5
    flow_heads: int = 4
    steps: int = 8  # of the sampler
    guidance: float = 1.5  # 1: none

    @property
    def latent(self) -> int:
        """Side of the latent."""
        return self.picture // 8


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Autoencoder(nn.Module):
    """Pictures `[B, 3, S, S]` in [-1, 1] to latents `[B, C, S/8, S/8]` of zero mean and unit variance, and back.

    Both ways are a linear map of 8 × 8 patches, begun at their principal components, plus a network, begun at zero.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.widths
        self.patches = nn.Conv2d(3, config.channels, 8, stride=8)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, fine, 3, padding=1),
            ResidualBlock(fine),
            nn.Conv2d(fine, middle, 2, stride=2),
            ResidualBlock(middle),
            nn.Conv2d(middle, coarse, 2, stride=2),
            ResidualBlock(coarse),
            nn.Conv2d(coarse, config.channels, 1),
        )
        self.paint = nn.ConvTranspose2d(config.channels, 3, 8, stride=8)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, coarse, 3, padding=1),
            ResidualBlock(coarse),
            ResidualBlock(coarse),
            nn.Conv2d(coarse, 4 * middle, 1),
            nn.PixelShuffle(2),
            ResidualBlock(middle),
            ResidualBlock(middle),
            nn.Conv2d(middle, 4 * fine, 1),
            nn.PixelShuffle(2),
            ResidualBlock(fine),
            nn.Conv2d(fine, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        for last in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.register_buffer("shift", torch.zeros(config.channels, 1, 1))
        self.register_buffer("scale", torch.ones(config.channels, 1, 1))

    @torch.no_grad()
    def begin(self, pictures: Tensor) -> None:
        """Set the linear maps to the first principal components of the 8 × 8 patches of `pictures`."""
        patches = F.unfold(pictures, 8, stride=8).transpose(1, 2).reshape(-1, 192).double()  # [B · places, 192]
        mean = patches.mean(dim=0)
        variance, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        basis = directions.T.flip(0)[: len(self.shift)]  # [C, 192], the strongest first
        deviation = variance.flip(0)[: len(self.shift), None].clamp_min(1e-8).sqrt()
        self.patches.weight.copy_((basis / deviation).view_as(self.patches.weight))
        self.patches.bias.copy_(-(basis / deviation) @ mean)
        self.paint.weight.copy_((basis * deviation).view_as(self.paint.weight))
        self.paint.bias.copy_(mean.view(3, 64).mean(dim=1))

    @torch.no_grad()
    def settle(self, latents: Tensor) -> Tensor:
        """Make these `latents` of all pictures have zero mean and unit variance per channel from now on; return them."""
        mean, deviation = latents.mean(dim=(0, 2, 3))[:, None, None], latents.std(dim=(0, 2, 3))[:, None, None]
        self.shift += self.scale * mean
        self.scale *= deviation
        return (latents - mean) / deviation

    def encode(self, pictures: Tensor) -> Tensor:
        latents = self.patches(pictures) + self.encoder(pictures)
        return (4 * torch.tanh(latents / 4) - self.shift) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents * self.scale + self.shift
        return self.paint(latents) + self.decoder(latents)


class EmbeddingReader(nn.Module):
    """Embeddings `[B, dim]` to conditions `[B, directions]` of mean square 1; fitted, not learned."""

    mean: Tensor
    project: Tensor

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("project", torch.zeros(config.dim, config.directions))

    def fit(self, embeddings: Tensor) -> None:
        """Principal directions, each divided by the fourth root of its variance (half-way to whitening)."""
        mean = embeddings.mean(dim=0)
        _, scale, directions = torch.linalg.svd(embeddings - mean, full_matrices=False)
        count = min(self.project.shape[1], len(scale))
        variance = scale[:count].square() / len(embeddings)
        self.mean.copy_(mean)
        self.project.zero_()
        self.project[:, :count] = directions[:count].T * (variance + 1e-6 * variance[0]).pow(-0.25)

    def forward(self, embeddings: Tensor) -> Tensor:
        return unit_rows((embeddings - self.mean) @ self.project)


def unit_rows(conditions: Tensor) -> Tensor:
    """Scale every row to mean square 1 (a row of zeros stays)."""
    return conditions * torch.rsqrt(conditions.square().mean(dim=1, keepdim=True) + 1e-12)


class FlowLayer(nn.Module):
    """Self-attention over the places and an MLP, both shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.table = nn.Parameter(torch.randn(6, width) * 0.02)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            (modulation + self.table).unsqueeze(2).unbind(1)
        )  # [B, 1, D]
        batch, places, width = x.shape
        h = F.layer_norm(x, (width,)) * (1 + scale) + shift
        q, k, v = self.qkv(h).view(batch, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 × [B, H, P, D/H]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, places, width)  # [B, P, D]
        x = x + gate * self.out(h)
        h = F.layer_norm(x, (width,)) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.down(F.gelu(self.up(h), approximate="tanh"))


class LatentFlow(nn.Module):
    """The velocity of a latent at time t in [0, 1] (0: noise, 1: picture), given the condition and the ridge's guess.

    Latents and guesses are `[B, C, L, L]`; the network sees 2 × 2 places as one token. A condition and guess of zeros
    mean "unconditional".
    """

    guess_weight: Tensor
    guess_mean: Tensor

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        width, self.side, self.channels = config.flow_width, config.latent // 2, config.channels
        token = 4 * config.channels
        self.read = nn.Linear(2 * token, width)
        self.places = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(config.directions, width), nn.SiLU(), nn.Linear(width, width))
        self.modulate = nn.Linear(width, 6 * width)
        self.layers = nn.ModuleList(FlowLayer(width, config.flow_heads) for _ in range(config.flow_layers))
        self.last = nn.Linear(width, 2 * width)
        self.write = nn.Linear(width, token)
        self.register_buffer("guess_weight", torch.zeros(config.directions, config.channels * config.latent**2))
        self.register_buffer("guess_mean", torch.zeros(config.channels * config.latent**2))
        nn.init.normal_(self.modulate.weight, std=0.02)
        nn.init.zeros_(self.write.weight)

    def guess(self, conditions: Tensor) -> Tensor:
        """The ridge regression's latent `[B, C, L, L]`."""
        side = 2 * self.side
        return (conditions @ self.guess_weight + self.guess_mean).view(-1, self.channels, side, side)

    def forward(self, latents: Tensor, time: Tensor, conditions: Tensor, guesses: Tensor) -> Tensor:
        tokens = F.pixel_unshuffle(torch.cat([latents, guesses], dim=1), 2).flatten(2).transpose(1, 2)  # [B, P, 8C]
        c = F.silu(self.time(waves(time)) + self.condition(conditions))
        modulation = self.modulate(c).view(len(c), 6, -1)  # [B, 6, D]
        x = self.read(tokens) + self.places
        for layer in self.layers:
            x = layer(x, modulation)
        shift, scale = self.last(c).unsqueeze(1).chunk(2, dim=-1)
        x = self.write(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)  # [B, P, 4C]
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (self.side, self.side)), 2)  # [B, C, L, L]


def waves(time: Tensor) -> Tensor:
    """Times `[B]` as 64 sines and cosines `[B, 64]`."""
    angles = time[:, None] * torch.exp(torch.linspace(0, math.log(300.0), 32, device=time.device))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class BuiltinImageDecoder(nn.Module):
    """`MediaDecoder` of pictures: 256 × 256 RGB from embeddings of `config.space`."""

    name = "builtin_image"
    media = "image"

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.space, self.dim = config.space, config.dim
        self.reader, self.flow, self.autoencoder = EmbeddingReader(config), LatentFlow(config), Autoencoder(config)

    @torch.no_grad()
    def decode(self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0) -> list[Image.Image]:
        """Draw one picture per row of `embeddings` float32 `[n, dim]`; see `MediaDecoder.decode`.

        Pictures are drawn one at a time: the rounding of a matrix product depends on the size of the batch, and a
        picture must not.
        """
        values = check_embeddings(embeddings, self.dim, self.name)
        return [self._draw(row, seed, first + i) for i, row in enumerate(values)]

    def _draw(self, embedding: np.ndarray, seed: int, index: int) -> Image.Image:
        config, device = self.config, self.reader.mean.device
        condition = self.reader(torch.from_numpy(embedding[None]).to(device))
        guess = self.flow.guess(condition)
        noise = np.random.default_rng([seed % 2**64, index]).standard_normal(tuple(guess.shape), dtype=np.float32)
        latent = sample(self.flow, torch.from_numpy(noise).to(device), condition, guess, config.steps, config.guidance)
        pixels = self.autoencoder.decode(latent)[0]
        return enlarge(pixels)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (half precision) into the folder `path`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors.tmp")
        os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
        text = json.dumps({"decoder": self.name, **asdict(self.config)}, indent=2) + "\n"
        (folder / "config.json.tmp").write_text(text, encoding="utf-8")
        os.replace(folder / "config.json.tmp", folder / "config.json")

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> BuiltinImageDecoder:
        """Load what `save_pretrained` wrote; `None` means the weights shipped with the package.

        Raises `FileNotFoundError` where a file is missing and `ValueError` where the weights do not fit the config.
        """
        folder = Path(path) if path is not None else SHIPPED
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: train the decoder, or load 'builtin_image'")
        fields: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields.pop("decoder", None)
        decoder = cls(ImageDecoderConfig(**{**fields, "widths": tuple(fields["widths"])}))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        try:
            decoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{folder}: the weights do not fit config.json ({error})") from error
        return decoder.eval()


def sample(flow: LatentFlow, x: Tensor, condition: Tensor, guess: Tensor, steps: int, guidance: float) -> Tensor:
    """Follow the velocity from noise `x` at t = 0 to t = 1 by Heun's rule; the last step is Euler's."""
    times = torch.linspace(0, 1, steps + 1, device=x.device)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        if guidance == 1:
            return flow(x, time.expand(len(x)), condition, guess)
        both = flow(
            torch.cat([x, x]),
            time.expand(2 * len(x)),
            torch.cat([condition, torch.zeros_like(condition)]),
            torch.cat([guess, torch.zeros_like(guess)]),
        )
        given, free = both.chunk(2)
        return free + guidance * (given - free)

    for now, then in pairwise(times):
        v = velocity(x, now)
        ahead = x + (then - now) * v
        x = ahead if then == 1 else x + (then - now) / 2 * (v + velocity(ahead, then))
    return x


def enlarge(pixels: Tensor) -> Image.Image:
    """Pixels `[3, S, S]` in [-1, 1] as an RGB picture of side OUTPUT, its edges sharpened a little after enlarging."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()  # [S, S, 3]
    return Image.fromarray(values).resize((OUTPUT, OUTPUT), Image.Resampling.LANCZOS)
