"""The built-in music decoder: a small transformer that writes a score for an embedding, and a soundfont that plays it.

An autoregressive transformer (Vaswani et al. 2017) over the tokens of `score.py`, told at every step what the grammar
knows (whose turn it is, where in the bar, how many bars are left), conditioned by a few prefix positions made from the
embedding, and sampled with classifier-free guidance (Ho & Salimans 2022, here on logits). Only what the grammar allows
is sampled, so every clip is a score that plays and closes in its key.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.decoders.base import Clip, check_embeddings, check_references, mix
from diffusion.decoders.score import HEADER, START, VOCABULARY, Grammar, Score, render, to_midi

SHIPPED = Path(__file__).parent / "weights" / "builtin_music"


@dataclass(frozen=True)
class MusicDecoderConfig:
    """Sizes of the transformer, and how it is sampled."""

    space: str = "musicnn_mtt"
    dim: int = 200
    width: int = 128
    layers: int = 4
    heads: int = 4
    prefix: int = 4  # positions made from the embedding
    dropout: float = 0.15  # in training
    guidance: float = 1.5
    header_temperature: float = 0.5  # of instrument, tempo, key, ...
    temperature: float = 0.9  # of the notes
    top_p: float = 0.95


Cache = list[tuple[Tensor, Tensor]]  # keys and values per layer, [B, H, T, W / H]


class Layer(nn.Module):
    """Causal attention with rotary positions (Su et al. 2021), then a feed-forward network, both after a norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, time, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, time, 3, self.heads, -1).transpose(1, 3)  # [B, H, 3, T, W/H]
        start = past[0].shape[2] if past else 0
        query, key, value = rotate(qkv[:, :, 0], start), rotate(qkv[:, :, 1], start), qkv[:, :, 2]
        if past:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, time, width)))  # [B, T, W]
        return x + self.dropout(self.feed(self.feed_norm(x))), (key, value)


def rotate(x: Tensor, start: int) -> Tensor:
    """Turn pairs of channels of `x` [B, H, T, C] by angles that grow with the position, the first being `start`."""
    half = x.shape[-1] // 2
    rates = 10_000 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(start, start + x.shape[2], device=x.device)[:, None] * rates  # [T, C / 2]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


class MusicTransformer(nn.Module):
    """Scores given an embedding: the logits of every next token."""

    mean: Tensor  # of the training embeddings, [dim]
    scale: Tensor  # their spread, [dim]

    def __init__(self, config: MusicDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))
        self.condition = nn.Sequential(
            nn.Linear(config.dim, 2 * width), nn.GELU(), nn.Linear(2 * width, (config.prefix + 1) * width)
        )
        self.unconditional = nn.Parameter(torch.randn((config.prefix + 1) * width) * 0.02)
        self.token = nn.Embedding(len(VOCABULARY), width)
        self.features = nn.ModuleList(nn.Embedding(size, width) for size in Grammar.FEATURES)
        self.layers = nn.ModuleList(Layer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.RMSNorm(width)
        self.logits = nn.Linear(width, len(VOCABULARY))
        for table in (self.token, *self.features):
            nn.init.normal_(table.weight, std=0.02)

    def normalise(self, embeddings: Tensor) -> Tensor:
        """Centre and scale `[B, dim]`, then keep the direction only: the length is what a bridge loses."""
        centred = (embeddings - self.mean) / self.scale
        return F.normalize(centred, dim=-1) * self.config.dim**0.5

    def context(self, embeddings: Tensor, known: Tensor) -> Tensor:
        """Return [B, prefix + 1, W] from normalised embeddings [B, dim]; where not `known` [B] it is the blank one."""
        made = torch.where(known[:, None], self.condition(embeddings), self.unconditional)
        return made.view(len(embeddings), self.config.prefix + 1, self.config.width)

    def forward(self, tokens: Tensor, features: Tensor, context: Tensor) -> Tensor:
        """Logits [B, T, V] of the tokens after `tokens` [B, T], about which `features` [B, T, 4] is known."""
        return self.step(tokens, features, context, None)[0]

    def step(self, tokens: Tensor, features: Tensor, context: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        """Like `forward`, for the tokens that come after those in `past`."""
        x = self.token(tokens) + context[:, -1:]
        for index, table in enumerate(self.features):
            x = x + table(features[..., index])
        x = self.dropout(x)
        if past is None:
            x = torch.cat([context[:, :-1], x], dim=1)  # [B, prefix + T, W]
        cache = []
        for index, layer in enumerate(self.layers):
            x, kept = layer(x, past[index] if past else None)
            cache.append(kept)
        return self.logits(self.norm(x[:, -tokens.shape[1] :])), cache


class BuiltinMusicDecoder:
    """Writes and plays one clip of about ten seconds per embedding of a sound."""

    name = "builtin_music"
    media = "audio"

    def __init__(self, network: MusicTransformer) -> None:
        self.network = network.eval()
        self.config = network.config
        self.space, self.dim = network.config.space, network.config.dim

    def decode(
        self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0, references: np.ndarray | None = None
    ) -> list[Clip]:
        """Play a clip for each of `embeddings` float32 `[n, dim]`; clip i depends on (embeddings[i], seed, first + i).

        Raises `ValueError` for another shape, or a value that is not finite.
        """
        return [
            render(to_midi(score)) for score in self.write(embeddings, seed=seed, first=first, references=references)
        ]

    def write(
        self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0, references: np.ndarray | None = None
    ) -> list[Score]:
        """Like `decode`, but return the scores."""
        values = check_embeddings(embeddings, self.dim, self.name)
        values = mix(values, check_references(references, len(values), self.dim, self.name))
        return [self._write_one(row, np.random.default_rng([seed, first + i])) for i, row in enumerate(values)]

    @torch.inference_mode()
    def _write_one(self, embedding: np.ndarray, rng: np.random.Generator) -> Score:
        """Sample one score. One at a time, because sums in a batch of another size may round differently."""
        config, network = self.config, self.network
        device = network.mean.device
        normalised = network.normalise(torch.from_numpy(embedding).to(device)[None]).expand(2, -1)
        context = network.context(normalised, torch.tensor([True, False], device=device))
        grammar, token, past = Grammar(), START, None
        while not grammar.done:
            tokens = torch.full((2, 1), token, device=device)
            features = torch.tensor([[grammar.features()]], device=device).expand(2, 1, -1)
            logits, past = network.step(tokens, features, context, past)
            given, blank = logits[:, -1].float().cpu().numpy()  # [V] each
            temperature = config.header_temperature if grammar.slot < len(HEADER) else config.temperature
            guided = (blank + config.guidance * (given - blank)) / temperature
            token = draw(np.where(grammar.allowed(cadence=True), guided, -np.inf), config.top_p, rng)
            grammar.push(token)
        return grammar.score()

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (float16) into the folder `path`, each replaced whole."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().half().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors.part")
        os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
        text = json.dumps({"decoder": self.name, **asdict(self.config)}, indent=2)
        (folder / "config.json.part").write_text(text + "\n", encoding="utf-8")
        os.replace(folder / "config.json.part", folder / "config.json")

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> BuiltinMusicDecoder:
        """Load what `save_pretrained` wrote; `None` means the weights shipped with the package.

        Raises `FileNotFoundError` where a file is missing and `ValueError` where the weights do not fit the config.
        """
        folder = Path(path) if path is not None else SHIPPED
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: train the decoder, or load 'builtin_music'")
        fields: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields.pop("decoder", None)
        network = MusicTransformer(MusicDecoderConfig(**fields))
        weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder}: the weights do not fit config.json ({error})") from error
        return cls(network)


def draw(logits: np.ndarray, top_p: float, rng: np.random.Generator) -> int:
    """Draw an index from the smallest set of likeliest ones that holds `top_p` (Holtzman et al. 2020, nucleus)."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64))
    weights /= weights.sum()
    kept = weights[: int(np.searchsorted(np.cumsum(weights), top_p)) + 1]
    place = np.searchsorted(np.cumsum(kept), rng.random() * kept.sum(), side="right")
    return int(order[min(place, len(kept) - 1)])
