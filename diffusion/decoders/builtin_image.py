"""The built-in picture decoder: a picture embedding in, a new picture between the catalog pictures it lies between.

It remembers the catalog's pictures as flat shapes (`shapes.py`) beside their embeddings, and draws by retrieval, as
retrieval-augmented diffusion does (Blattmann et al. 2022, section 3): of the remembered pictures near the embedding it
takes one, then the one whose blend with the first points most nearly where the embedding points, and draws what lies
between their shapes. Where references are given, only the pictures they name are drawn from. Nothing comes out that is
one remembered picture unchanged. Fitting takes seconds on a catalog's own pictures, so nothing has to be shipped; the
price is that it knows no shape its pictures do not have. (A latent flow with an autoencoder was trained for an hour on
two cores first: its drawings of unseen things were blots.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion.decoders.base import check_embeddings, check_references
from diffusion.decoders.shapes import SIDE, Shapes, between, cut

FIRST = 5  # remembered pictures the first is drawn from
SECOND = 3  # the best partners the second is drawn from
CHOICE = 0.04  # softness of the first draw, in cosine
STEPS = (0.2, 0.28, 0.36, 0.44)  # how far toward the second picture the shape may go


@dataclass(frozen=True)
class ImageDecoderConfig:
    """`space` is the embedding space of the pictures; `directions` of it are compared; `side` pixels are drawn."""

    space: str = "efficientnet_lite0"
    directions: int = 128
    side: int = 256


class BuiltinImageDecoder:
    """See the top of the file. Made by `train_image_decoder` or `from_pretrained`."""

    name = "builtin_image"
    media = "image"

    def __init__(self, config: ImageDecoderConfig, arrays: dict[str, np.ndarray]) -> None:
        """arrays: mean [d], axes [d, r], memory [N, r] unit rows, labels uint8 [N, SIDE, SIDE / 2] (two labels a byte),
        palettes uint8 [N, P, 3]."""
        self.config, self.arrays = config, arrays
        self.space = config.space
        self.dim = len(arrays["mean"])

    def __len__(self) -> int:
        return len(self.arrays["memory"])

    def decode(
        self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0, references: np.ndarray | None = None
    ) -> list[Image.Image]:
        """One RGB picture per embedding [n, dim], out of the remembered pictures that `references` [n, K, dim] name,
        or else out of all; picture i depends on (embeddings[i], references[i], seed, first + i) only."""
        values = check_embeddings(embeddings, self.dim, self.name)
        guides = check_references(references, len(values), self.dim, self.name)
        mean, axes = self.arrays["mean"], self.arrays["axes"]
        read = _read(values, mean, axes)  # [n, r]
        memory = self.arrays["memory"]
        drawn = []
        for i, (wanted, guide) in enumerate(zip(read, guides, strict=True)):
            named = np.unique((memory @ _read(guide, mean, axes).T).argmax(axis=0))
            among = named if len(named) > 1 else np.arange(len(memory))
            drawn.append(self._draw(wanted, among, np.random.default_rng([seed, first + i])))
        return drawn

    def _draw(self, wanted: np.ndarray, among: np.ndarray, random: np.random.Generator) -> Image.Image:
        memory = self.arrays["memory"][among]  # [N, r]
        likeness = memory @ wanted  # [N]
        near = np.argsort(-likeness, kind="stable")[:FIRST]
        odds = np.exp((likeness[near] - likeness[near[0]]) / CHOICE)
        a = int(random.choice(near, p=odds / odds.sum()))
        blends = np.stack([(1 - t) * memory[a] + t * memory for t in STEPS])  # [steps, N, r]
        fit = blends @ wanted / (np.linalg.norm(blends, axis=2) + 1e-9)  # [steps, N]
        fit[:, a] = -np.inf
        partners = np.argsort(-fit.max(axis=0), kind="stable")[:SECOND]
        b = int(random.choice(partners[partners != a])) if len(memory) > 1 else a
        t = STEPS[int(fit[:, b].argmax())] if b != a else 0.0
        colour = float(random.choice([0.15, 0.85], p=[0.7, 0.3]))
        return between(self._shapes(int(among[a])), self._shapes(int(among[b])), t, colour, self.config.side)

    def _shapes(self, i: int) -> Shapes:
        packed = self.arrays["labels"][i]  # [SIDE, SIDE / 2]
        labels = np.stack([packed >> 4, packed & 15], axis=2).reshape(SIDE, SIDE)
        return Shapes(labels, self.arrays["palettes"][i].astype(np.float32) / 255)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        from safetensors.numpy import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.arrays, folder / "model.safetensors.part")
        os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
        config = {"decoder": self.name, **asdict(self.config)}
        (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(folder / "config.json.part", folder / "config.json")

    @classmethod
    def from_pretrained(cls, path: str | Path | None) -> BuiltinImageDecoder:
        """Read what `save_pretrained` wrote. Raises FileNotFoundError; without a path too, for none is shipped."""
        from safetensors.numpy import load_file

        if path is None:
            raise FileNotFoundError("builtin_image learns from a catalog's own pictures: mmrec train decoder")
        folder = Path(path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no decoder: {name} is missing; run mmrec train decoder")
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("decoder", None)
        return cls(ImageDecoderConfig(**config), load_file(folder / "model.safetensors"))


def train_image_decoder(
    pictures: Sequence[str | Path],
    embeddings: np.ndarray,
    config: ImageDecoderConfig = ImageDecoderConfig(),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> BuiltinImageDecoder:
    """Remember pictures with their embeddings float32 [N, d] of the space `config.space`; nothing in it is random.

    Raises ValueError if the two do not pair up or there are none, OSError for a file that is no picture.
    """
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(pictures) or not len(pictures):
        raise ValueError(f"{len(pictures)} pictures with embeddings {list(embeddings.shape)}: give one row a picture")
    mean = embeddings.mean(axis=0)
    _, _, axes = np.linalg.svd(_unit(embeddings - mean), full_matrices=False)
    kept = np.ascontiguousarray(axes[: config.directions].T)  # [d, r]

    def shapes(path: str | Path) -> Shapes:
        with Image.open(path) as picture:
            return cut(picture)

    made = []
    with ThreadPoolExecutor(2) as pool:
        for done, one in enumerate(pool.map(shapes, pictures), 1):
            made.append(one)
            if progress is not None and (done % 16 == 0 or done == len(pictures)):
                progress(done, len(pictures))
    labels = np.stack([one.labels for one in made]).reshape(len(made), SIDE, SIDE // 2, 2)
    palettes = np.zeros((len(made), max(len(one.palette) for one in made), 3), np.uint8)
    for row, one in zip(palettes, made, strict=True):
        row[: len(one.palette)] = (255 * one.palette).round()
    arrays = {
        "mean": mean,
        "axes": kept,
        "memory": _read(embeddings, mean, kept),
        "labels": (labels[..., 0] << 4) | labels[..., 1],
        "palettes": palettes,
    }
    return BuiltinImageDecoder(config, arrays)


def _read(embeddings: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """[n, d] to unit rows [n, r]: length is dropped on purpose, an embedding that came over a bridge has it wrong."""
    return _unit((_unit(embeddings - mean) @ axes).astype(np.float32))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
