"""Readers let nothing through that is not whole, and say what is wrong with which file."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from encoders.media import MAX_PIXELS, MediaError, check_audio, check_image, read_audio, read_image


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def refused(path: Path, *readers: object) -> str:
    """Every reader refuses the file by name; returns the last reason."""
    for reader in readers:
        with pytest.raises(MediaError) as caught:
            reader(path)  # type: ignore[operator]
        assert str(path) in str(caught.value)
        assert caught.value.path == path
        assert caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_whole_picture_is_read_and_a_cut_one_refused(tmp_path: Path, noise: Image.Image, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise.save(path)
    check_image(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == noise.size
    for keep in (0.9, 0.5, 0.02):
        noise.save(path)
        refused(cut(path, keep), check_image, read_image)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    reason = refused(path, check_image, read_image)
    if not content:
        assert "empty" in reason


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 12_000), (MAX_PIXELS + 1, 1)])
def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    tracemalloc.start()
    reason = refused(path, check_image, read_image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "pixels" in reason
    assert peak < 5e6


def test_alpha_lies_on_white_and_16_bits_become_8(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (127, 127, 127)


def test_a_turned_photo_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # camera held sideways
    Image.new("RGB", (30, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 30)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_sound_is_read_as_mono(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    left = np.sin(np.arange(44_100) * 2 * np.pi * 440 / 22_050).astype(np.float32) * 0.5
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 22_050)
    check_audio(path)
    wave = read_audio(path)
    assert wave.rate == 22_050
    assert wave.samples.dtype == np.float32
    assert wave.seconds == pytest.approx(2, abs=0.1)
    assert np.abs(wave.samples).max() == pytest.approx(0.25, abs=0.03)
    assert len(read_audio(path, max_seconds=0.5).samples) == 11_025


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("keep", [0.97, 0.5, 0.01])
def test_a_cut_sound_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 30_000), 16_000)
    refused(cut(path, keep), check_audio, read_audio)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"ID3 no music here", b"OggS", b"\0" * 5000])
def test_what_is_no_sound_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    refused(path, check_audio, read_audio)


def test_a_sound_without_samples_and_one_of_nan_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert "empty" in refused(tmp_path / "none.wav", check_audio, read_audio)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    assert "not numbers" in refused(tmp_path / "nan.wav", read_audio)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.png", tmp_path / ("x" * 5000)):
        refused(path, check_image, read_image, check_audio, read_audio)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path, noise: Image.Image) -> None:
    rng = np.random.default_rng(0)
    noise.save(tmp_path / "a.jpg")
    noise.save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", rng.uniform(-1, 1, 4000), 16_000)
    soundfile.write(tmp_path / "a.ogg", rng.uniform(-1, 1, 4000), 16_000)
    for name in ("a.jpg", "a.png", "a.wav", "a.ogg"):
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        readers = (check_image, read_image) if name[2:] in ("jpg", "png") else (check_audio, read_audio)
        for _ in range(25):
            broken = whole.copy()
            broken[rng.integers(0, min(len(broken), 400), 6)] = rng.integers(0, 256, 6)
            (tmp_path / name).write_bytes(broken.tobytes())
            for reader in readers:
                with contextlib.suppress(MediaError):  # any other error fails the test
                    reader(tmp_path / name)
