"""MusiCNN (Pons & Serra 2019, "musicnn: pre-trained convolutional neural networks for music audio tagging").

Filters shaped like what they listen for: tall ones for timbre, long ones for rhythm; then three residual layers in time
and a pooling that lets the network read any length, though it was trained on 3-second patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

RATE = 16_000
N_FFT, HOP, N_MELS = 512, 256, 96
PATCH = 187  # frames in 3 seconds

TAGS: tuple[str, ...] = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
    "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing",
    "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop",
    "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice",
    "female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip


@dataclass(frozen=True)
class MusiCNNConfig:
    timbral_filters: int = 204
    timbral_heights: tuple[int, ...] = (38, 67)  # of 96 mel bands: 0.4 and 0.7 of them
    temporal_filters: int = 51
    temporal_lengths: tuple[int, ...] = (128, 64, 32)
    mid_filters: int = 64
    penultimate: int = 200
    tags: int = len(TAGS)


class Block(nn.Module):
    """Convolution, ReLU, batch norm; then, for pictures of sound, the maximum over all frequencies."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        flat = isinstance(conv, nn.Conv1d)
        self.norm: nn.Module = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(conv.out_channels, eps=1e-3)
        self.padding = padding if flat else (0, 0, *padding)  # time only

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.conv(nn.functional.pad(x, self.padding))))
        return x if x.dim() == 3 else x.amax(dim=3)  # [B, C, T]


class MusiCNN(nn.Module):
    """Log-mel patches [B, T, 96] to `penultimate` [B, 200] and tag logits [B, 50]."""

    def __init__(self, config: MusiCNNConfig = MusiCNNConfig()) -> None:
        super().__init__()
        c = config
        self.norm = nn.BatchNorm2d(1, eps=1e-3)
        self.timbral = nn.ModuleList(
            Block(nn.Conv2d(1, c.timbral_filters, (7, height)), (3, 3)) for height in c.timbral_heights
        )
        self.temporal = nn.ModuleList(
            Block(nn.Conv2d(1, c.temporal_filters, (length, 1)), ((length - 1) // 2, length // 2))
            for length in c.temporal_lengths
        )
        front = c.timbral_filters * len(c.timbral_heights) + c.temporal_filters * len(c.temporal_lengths)
        self.mid = nn.ModuleList(
            Block(nn.Conv1d(features, c.mid_filters, 7), (3, 3)) for features in (front, c.mid_filters, c.mid_filters)
        )
        pooled = 2 * (front + 3 * c.mid_filters)
        self.pooled_norm = nn.BatchNorm1d(pooled, eps=1e-3)
        self.dense = nn.Linear(pooled, c.penultimate)
        self.dense_norm = nn.BatchNorm1d(c.penultimate, eps=1e-3)
        self.tags = nn.Linear(c.penultimate, c.tags)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(patches.unsqueeze(1))  # [B, 1, T, 96]
        front = torch.cat([block(x) for block in (*self.timbral, *self.temporal)], dim=1)  # [B, 561, T]
        first = self.mid[0](front)  # [B, 64, T]
        second = self.mid[1](first) + first
        third = self.mid[2](second) + second
        features = torch.cat([front, first, second, third], dim=1)  # [B, 753, T]
        pooled = torch.stack([features.amax(dim=2), features.mean(dim=2)], dim=2).flatten(1)  # [B, 753 * 2]
        penultimate = self.dense_norm(torch.relu(self.dense(self.pooled_norm(pooled))))
        return penultimate, self.tags(penultimate)


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """[96, 257] triangular filters, Slaney's scale and area."""
    import librosa.filters

    return torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=N_MELS))


def log_mel(samples: Tensor) -> Tensor:
    """float32 [n] at 16 kHz to [frames, 96], log10(1 + 10,000 x power)."""
    if len(samples) <= N_FFT // 2:  # reflection at the borders needs that much
        samples = samples.repeat(N_FFT // len(samples) + 1)
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(samples, N_FFT, HOP, window=window, pad_mode="reflect", return_complex=True)  # [257, frames]
    power = spectrum.real**2 + spectrum.imag**2
    return torch.log10(1 + 10_000 * (mel_filters().to(samples.device) @ power)).T


def patches(frames: Tensor) -> Tensor:
    """[frames, 96] to [P, 187, 96]: consecutive 3-second patches; a clip shorter than one is repeated to fill it."""
    if len(frames) < PATCH:
        frames = frames.repeat(PATCH // len(frames) + 1, 1)[:PATCH]
    count = len(frames) // PATCH
    return frames[: count * PATCH].reshape(count, PATCH, N_MELS)  # [P, 187, 96]
