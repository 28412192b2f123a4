"""What every decoder of media is: embeddings in, pictures or clips out.

A decoder reads one embedding space and says which (`space`, the same string as the encoder that makes that space). The
vectors of two spaces may have the same length and mean entirely different things, so asking a decoder of one space to
draw vectors of another is refused by name, not by shape.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# name -> module and class; its `from_pretrained(path | None)` takes None for the weights shipped with it, if any
DECODERS: dict[str, tuple[str, str]] = {
    "builtin_image": ("diffusion.decoders.builtin_image", "BuiltinImageDecoder"),
    "builtin_music": ("diffusion.decoders.builtin_music", "BuiltinMusicDecoder"),
    "kandinsky": ("diffusion.decoders.kandinsky", "KandinskyDecoder"),
    "ip_adapter": ("diffusion.decoders.ip_adapter", "IPAdapterDecoder"),
    "ip_adapter_sdxl": ("diffusion.decoders.ip_adapter", "IPAdapterXLDecoder"),
    "unclip": ("diffusion.decoders.unclip", "UnCLIPDecoder"),
    "musicldm": ("diffusion.decoders.audioldm", "MusicLDMDecoder"),
    "audioldm2": ("diffusion.decoders.audioldm", "AudioLDM2Decoder"),
}


REFERENCE = 0.3  # what references weigh beside an embedding they are mixed with


class SpaceMismatch(ValueError):
    """The embeddings come from another space than the decoder reads."""


@dataclass(frozen=True)
class Clip:
    """A piece of music: `samples` float32 `[n]` mono in [-1, 1], `rate` in Hz, and the score it was rendered from.

    `midi` is a standard MIDI file as bytes, empty where the decoder made sound without a score.
    """

    samples: np.ndarray
    rate: int
    midi: bytes = b""

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return len(self.samples) / self.rate


@runtime_checkable
class MediaDecoder(Protocol):
    """The contract of a decoder; `media` is "image" or "audio"."""

    name: str
    space: str
    media: str
    dim: int

    def decode(
        self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0, references: np.ndarray | None = None
    ) -> Sequence[Image] | Sequence[Clip]:
        """Make one picture (RGB) or clip per row of `embeddings` float32 `[n, dim]`, not normalised.

        `references` float32 `[n, K, dim]` are embeddings of real things near to each, the nearest first, that may guide
        what is made (ImageRAG, Shalev-Arkushin et al. 2025; `mix` for those that can read one embedding only).

        Item i depends on `(embeddings[i], references[i], seed, first + i)` only, so a long batch can be cut anywhere:
        decode the part that starts at row r with `first=r`. Raises `ValueError` for another shape or a value that is
        not finite.
        """
        ...

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json`, which names the decoder under "decoder", and `model.safetensors`.

        A decoder over a published pipeline writes `config.json` only: it says where the pipeline is.
        """
        ...


def decoder_names() -> list[str]:
    """The decoders that come with the package."""
    return sorted(DECODERS)


def load_decoder(name_or_path: str | Path, space: str) -> MediaDecoder:
    """Load a decoder by name, or one saved by `save_pretrained`, for embeddings of `space`.

    `<name>:<folder or hub repository>` says which weights of a pipeline of diffusers (docs/decoders.md); they are read
    when the first item is decoded.

    Raises `KeyError` for a name nobody registered, `FileNotFoundError` for a folder that holds no decoder and
    `SpaceMismatch` where the decoder reads another space.
    """
    family, _, which = str(name_or_path).partition(":")
    if family in DECODERS:
        decoder = _decoder_class(family).from_pretrained(which or None)
    elif os.sep not in str(name_or_path) and not Path(name_or_path).is_dir():
        raise KeyError(f"no decoder named {name_or_path!r}; there are {', '.join(decoder_names())}, or give a folder")
    else:
        config = Path(name_or_path) / "config.json"
        if not config.is_file():
            raise FileNotFoundError(f"{name_or_path} holds no decoder: {config} is missing; train one or give a name")
        name = json.loads(config.read_text(encoding="utf-8")).get("decoder")
        if name not in DECODERS:
            raise KeyError(f'{config} says "decoder": {name!r}; there are {", ".join(decoder_names())}')
        decoder = _decoder_class(name).from_pretrained(Path(name_or_path))
    if decoder.space != space:
        raise SpaceMismatch(
            f"{decoder.name} draws embeddings of the space {decoder.space!r}, not {space!r}: "
            f"give it embeddings of its own space (a bridge can make them), or train a decoder for {space!r}"
        )
    return decoder


def check_embeddings(embeddings: np.ndarray, dim: int, name: str) -> np.ndarray:
    """Return `embeddings` as float32 `[n, dim]`, or raise `ValueError` saying what is wrong with them."""
    values = np.asarray(embeddings, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"{name} reads embeddings of shape [n, {dim}], got {list(values.shape)}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: embedding {int(np.argmin(finite))} holds a NaN or an infinity")
    return values


def check_references(references: np.ndarray | None, n: int, dim: int, name: str) -> np.ndarray:
    """Return `references` as float32 `[n, K, dim]`, K = 0 where there are none, or raise `ValueError`."""
    if references is None:
        return np.zeros((n, 0, dim), np.float32)
    values = np.asarray(references, dtype=np.float32)
    if values.ndim != 3 or (len(values), values.shape[2]) != (n, dim) or not np.isfinite(values).all():
        raise ValueError(f"{name}: references must be finite numbers [{n}, K, {dim}], got {list(values.shape)}")
    return values


def mix(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Embeddings `[n, dim]` pulled toward the mean of their references `[n, K, dim]`, as long as they were.

    Mixing in the embedding space is how Kandinsky (Razzhigaev et al. 2023, section 4) and unCLIP blend pictures.
    """
    if not references.shape[1]:
        return embeddings
    mixed = (1 - REFERENCE) * embeddings + REFERENCE * references.mean(axis=1)
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, mixed)]
    return (mixed * lengths[0] / np.maximum(lengths[1], 1e-12)).astype(np.float32)


def _decoder_class(name: str) -> Any:
    module, attribute = DECODERS[name]
    return getattr(import_module(module), attribute)
