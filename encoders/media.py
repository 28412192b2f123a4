"""Safe readers of pictures and sounds.

Whatever cannot be read whole (truncated, empty, corrupt, oversized, of an unknown format) raises `MediaError`, which
names the file and the reason; nothing else escapes and nothing is decoded before its header was found sane.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1_000, 768_000
_BLOCK = 1 << 18  # frames read at a time, so that a many-channelled file never sits in memory whole


class MediaError(ValueError):
    """A file of media that cannot be used: `path` says which, `reason` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass(frozen=True)
class Waveform:
    """Mono sound: `samples` float32 [n] in [-1, 1], `rate` in samples per second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def check_image(path: str | Path) -> None:
    """Raise MediaError unless the picture is whole; cheaper than reading it (JPEGs at an eighth, PNGs by checksum)."""
    _decode_image(path, cheap=True)


def read_image(path: str | Path) -> Image:
    """The first frame as RGB, upright (EXIF), alpha composited on white. Raises MediaError, also over MAX_PIXELS."""
    from PIL import Image, ImageOps

    image = _decode_image(path, cheap=False)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 or 32 bits of grey: keep the high byte of 16
            grey = np.asarray(image).astype(np.float64) / 257
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8), mode="L")
        if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except Exception as error:
        raise MediaError(path, f"not a usable picture ({error})") from error


def check_audio(path: str | Path) -> None:
    """Raise MediaError unless the sound is whole, as far as its container tells: header, size, last frame."""
    with _open_audio(path) as file:
        try:
            file.seek(file.frames - 1)
            last = file.read(1, dtype="float32")
        except Exception as error:
            raise MediaError(path, f"truncated or corrupt sound ({error})") from error
        if len(last) != 1:
            raise MediaError(path, "truncated sound: its last sample is missing")


def read_audio(path: str | Path, max_seconds: float = 60.0) -> Waveform:
    """The first `max_seconds` as mono, at the file's own rate. Raises MediaError."""
    if not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, got {max_seconds}")
    with _open_audio(path) as file:
        wanted = min(file.frames, int(max_seconds * file.samplerate) or 1)
        mono = np.zeros(wanted, dtype=np.float32)
        filled = 0
        while filled < wanted:
            try:
                block = file.read(min(_BLOCK, wanted - filled), dtype="float32", always_2d=True)  # [frames, channels]
            except Exception as error:
                raise MediaError(path, f"truncated or corrupt sound ({error})") from error
            if not len(block):
                raise MediaError(path, f"truncated sound: {wanted} samples promised, {filled} found")
            mono[filled : filled + len(block)] = block.mean(axis=1)
            filled += len(block)
        rate = int(file.samplerate)
    if not np.isfinite(mono).all():
        raise MediaError(path, "the sound holds values that are not numbers")
    return Waveform(np.clip(mono, -1.0, 1.0), rate)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    try:
        if not path.exists():
            raise MediaError(path, "no such file")
        if not path.is_file():
            raise MediaError(path, "not a regular file")
        if path.stat().st_size == 0:
            raise MediaError(path, "the file is empty (0 bytes)")
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error})") from error
    except ValueError as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(path, f"not a path ({error})") from error
    return path


def _decode_image(path: str | Path, cheap: bool) -> Image:
    from PIL import Image, UnidentifiedImageError

    path = _existing(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of big pictures; here they are refused by number
            image = Image.open(path)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise MediaError(path, f"{width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
            if width < 1 or height < 1:
                raise MediaError(path, f"a picture of {width} x {height} pixels")
            if cheap and image.format == "PNG":
                image.verify()
                return image
            if cheap:
                image.draft("RGB", (max(1, width // 8), max(1, height // 8)))  # JPEG decodes at an eighth, others whole
            image.load()
            return image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(path, f"more than the {MAX_PIXELS:,} pixels allowed ({error})") from error
    except UnidentifiedImageError as error:
        raise MediaError(path, "not a picture of a known format") from error
    except Exception as error:
        raise MediaError(path, f"truncated or corrupt picture ({error})") from error


def _open_audio(path: str | Path) -> Any:
    import soundfile

    path = _existing(path)
    _refuse_cut_container(path)
    try:
        file = soundfile.SoundFile(path)
    except Exception as error:
        raise MediaError(path, f"not a sound of a known format ({error})") from error
    reason = None
    if file.frames < 1:
        reason = "the sound is empty (0 samples)"
    elif not MIN_RATE <= file.samplerate <= MAX_RATE:
        reason = f"a sampling rate of {file.samplerate} Hz"
    elif not 1 <= file.channels <= MAX_CHANNELS:
        reason = f"{file.channels} channels, more than the {MAX_CHANNELS} allowed"
    if reason:
        file.close()
        raise MediaError(path, reason)
    return file


def _refuse_cut_container(path: Path) -> None:
    """libsndfile reads cut WAV and Ogg files as if they were merely short; their containers say otherwise."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            while len(chunk := file.read(8)) == 8:
                name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
                if name == b"data":
                    start = file.tell()
                    streamed = length in (0, 0xFFFFFFFF)  # written to a pipe: the length was never filled in
                    if not streamed and start + length > size:
                        raise MediaError(path, f"truncated sound: {length} bytes promised, {size - start} found")
                    return
                file.seek(length + length % 2, 1)
            raise MediaError(path, "truncated sound: a WAV file without data")
        if head[:4] == b"OggS":
            file.seek(max(0, size - 65_307 - 27))  # the longest page there can be
            tail = file.read()
            page = tail[tail.rfind(b"OggS") :]
            segments = page[26] if len(page) > 26 else 0
            table = page[27 : 27 + segments]
            if len(page) < 27 or len(table) < segments or len(page) < 27 + segments + sum(table):
                raise MediaError(path, "truncated sound: its last Ogg page is cut")
