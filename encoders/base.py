"""What an encoder is: files of one kind in, one float32 vector each out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from encoders.media import Waveform

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Item: TypeAlias = "str | Image | Waveform"


@runtime_checkable
class Encoder(Protocol):
    """`name` finds it in the registry; two encoders whose `space` is equal give comparable vectors of `dim` numbers."""

    name: str
    space: str
    dim: int
    modalities: frozenset[str]

    def encode(self, items: Sequence[Item], modality: str) -> np.ndarray:
        """[n, dim] float32, not normalised. Raises ValueError for a modality or an item it does not take."""
        ...


class BatchedEncoder:
    """The part all encoders share: checks, batches of similar length, and half precision on a GPU.

    A subclass sets the fields of `Encoder` and `device`, and writes `encode_batch`.
    """

    name: str
    space: str
    dim: int
    modalities: frozenset[str]
    device: torch.device
    batch_size: int = 32

    def encode_batch(self, items: list[Any], modality: str) -> torch.Tensor:
        """[b, dim] for at most `batch_size` items of one modality."""
        raise NotImplementedError

    def encode(self, items: Sequence[Item], modality: str) -> np.ndarray:
        """[n, dim] float32, not normalised. Raises ValueError for a modality or an item it does not take."""
        import torch

        check_items(self.name, self.modalities, items, modality)
        out = np.zeros((len(items), self.dim), dtype=np.float32)
        order = np.argsort([_length(item) for item in items], kind="stable")  # little padding within a batch
        with torch.inference_mode(), half_precision(self.device):
            for start in range(0, len(items), self.batch_size):
                rows = order[start : start + self.batch_size]
                vectors = self.encode_batch([items[row] for row in rows], modality)
                out[rows] = vectors.float().cpu().numpy()
        return out


def check_items(name: str, modalities: frozenset[str], items: Sequence[Item], modality: str) -> None:
    """Raise ValueError if `modality` is not one of `modalities` or an item is not of it."""
    if modality not in modalities:
        raise ValueError(f"encoder {name!r} takes {' or '.join(sorted(modalities))}, not {modality!r}")
    if isinstance(items, str):
        raise ValueError(f"encoder {name!r} takes a list of items, got one string")
    expected = {"text": "a str", "tags": "a str", "image": "a PIL image (encoders.media.read_image)"}.get(
        modality, "a Waveform (encoders.media.read_audio)"
    )
    for position, item in enumerate(items):
        if modality in ("text", "tags"):
            fits = isinstance(item, str)
        elif modality == "image":
            fits = hasattr(item, "convert")
        else:
            fits = isinstance(item, Waveform) and len(item.samples) > 0
        if not fits:
            raise ValueError(f"item {position} of modality {modality!r} must be {expected}, got {type(item).__name__}")


def _length(item: Item) -> int:
    if isinstance(item, str):
        return len(item)
    return len(item.samples) if isinstance(item, Waveform) else 0


def resolve_device(device: str | None) -> torch.device:
    """The named device, or the one accelerate picks."""
    import torch

    if device is not None:
        return torch.device(device)
    from accelerate import PartialState

    return PartialState().device


def half_precision(device: torch.device) -> Any:
    """bf16 (fp16 on older cards) on CUDA; elsewhere everything stays float32."""
    import torch

    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def fingerprint(path: Path) -> str:
    """The name of local weights in a space name: equal files have equal spaces, wherever they lie."""
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        if not weights:
            raise FileNotFoundError(f"no weights (*.safetensors, *.bin) in {path}")
    else:
        weights = [path]
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return f"sha256-{digest.hexdigest()[:12]}"


def package_folder(package: str) -> Path:
    """Folder of an installed package, without importing it. Raises FileNotFoundError saying what to install."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"package {package} is missing; run: pip install {package.replace('_', '-')}")
    return Path(spec.origin).parent


def resample(waveform: Waveform, rate: int) -> np.ndarray:
    """float32 [n] at `rate`."""
    if waveform.rate == rate:
        return waveform.samples
    import soxr

    return soxr.resample(waveform.samples, waveform.rate, rate)
