"""MusiCNN hears what is played, and its weights are read as the format says."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from encoders.audio import WEIGHTS, MusiCNNEncoder
from encoders.media import Waveform
from encoders.musicnn import TAGS, log_mel, patches
from encoders.musicnn_checkpoint import MAGIC, convert, read_bundle, to_torch_layout

CLASSICAL = ["violin", "piano", "flute", "strings"]


@pytest.fixture(scope="module")
def musicnn() -> MusiCNNEncoder:
    return MusiCNNEncoder("cpu")


@pytest.fixture(scope="module")
def tags(musicnn: MusiCNNEncoder, music: Callable[[str], Waveform]) -> dict[str, dict[str, float]]:
    pieces = [*CLASSICAL, "choir", "techno", "rock"]
    probabilities = musicnn.tag([music(piece) for piece in pieces])
    return {piece: dict(zip(TAGS, row.tolist(), strict=True)) for piece, row in zip(pieces, probabilities, strict=True)}


def best(tags: dict[str, float], k: int) -> list[str]:
    return sorted(tags, key=lambda tag: -tags[tag])[:k]


@pytest.mark.parametrize("piece", ["violin", "piano", "flute", "choir"])
def test_a_solo_instrument_is_the_likeliest_tag(tags: dict[str, dict[str, float]], piece: str) -> None:
    assert best(tags[piece], 1) == [piece]


def test_styles_are_told_apart(tags: dict[str, dict[str, float]]) -> None:
    classical = np.mean([tags[piece]["classical"] for piece in CLASSICAL])
    assert classical > 10 * max(tags["techno"]["classical"], tags["rock"]["classical"])
    assert {"techno", "electronic", "drums", "beat"} & set(best(tags["techno"], 3)) >= {"techno", "electronic"}
    assert {"guitar", "rock"} <= set(best(tags["rock"], 4))
    assert "strings" in best(tags["strings"], 3)


def test_top_tags_are_sorted(musicnn: MusiCNNEncoder, music: Callable[[str], Waveform]) -> None:
    assert musicnn.top_tags(music("piano"), 2)[0] == "piano"


def test_the_vector_is_the_mean_over_patches(musicnn: MusiCNNEncoder) -> None:
    rng = np.random.default_rng(0)
    import torch

    frames = log_mel(torch.from_numpy(rng.uniform(-0.3, 0.3, 16_000 * 7).astype(np.float32)))
    assert frames.shape == (16_000 * 7 // 256 + 1, 96)
    assert patches(frames).shape == (2, 187, 96)
    assert torch.equal(patches(frames[:50])[0, 50:100], frames[:50])


def test_the_spectrogram_is_librosas() -> None:
    """The network was trained on librosa's: n_fft 512, hop 256, 96 bands at 16 kHz, reflected at the borders."""
    import librosa
    import torch

    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    mel = librosa.feature.melspectrogram(y=samples, sr=16_000, n_fft=512, hop_length=256, n_mels=96, pad_mode="reflect")
    np.testing.assert_allclose(log_mel(torch.from_numpy(samples)), np.log10(10_000 * mel.T + 1), atol=1e-4)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Keys stored by what they do not share with the one before, as LevelDB does."""
    out, previous = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, previous, strict=False)) if a != b), len(previous))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return out + struct.pack("<II", 0, 1)


def bundle(tensors: dict[str, np.ndarray], dtype: int = 1) -> tuple[bytes, bytes]:
    """A minimal TensorFlow checkpoint of `tensors`: (index, data)."""
    entries, data = [(b"", b"\x08\x01")], b""
    for name, value in sorted(tensors.items()):
        dims = b"".join(b"\x12" + varint(len(dim)) + dim for dim in (b"\x08" + varint(d) for d in value.shape))
        raw = value.astype("<f4").tobytes()
        entry = b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims
        entry += b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw)) + b"\x35" + struct.pack("<I", 7)
        entries.append((name.encode(), entry))
        data += raw
    first = block(entries)
    second = block([(b"z", varint(0) + varint(len(first)))])
    index = first + b"\0" * 5 + second + b"\0" * 5
    footer = varint(0) + varint(0) + varint(len(first) + 5) + varint(len(second))
    return index + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC), data


def test_a_tensor_bundle_is_read_back() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "conv2d/kernel": rng.normal(size=(7, 3, 1, 200)),
        "conv2d/bias": rng.normal(size=200),
        "b": rng.normal(size=()),
    }
    read = read_bundle(*bundle(tensors))
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value.astype(np.float32))
    assert read_bundle(*bundle(tensors, dtype=9)) == {}  # integers are counters, not weights


def test_a_damaged_bundle_is_refused() -> None:
    index, data = bundle({"a": np.ones((4, 4))})
    with pytest.raises(ValueError, match="magic"):
        read_bundle(index[:-1], data)
    with pytest.raises(ValueError, match="do not hold"):
        read_bundle(index, data[:-1])
    with pytest.raises(ValueError, match="conv2d/kernel"):
        to_torch_layout({"a": np.ones(2)})


def test_the_shipped_weights_are_what_the_converter_writes(tmp_path: Path) -> None:
    wheel = os.environ.get("MMREC_MUSICNN_WHEEL")
    if not wheel:
        pytest.skip("set MMREC_MUSICNN_WHEEL to musicnn-0.1.0-py3-none-any.whl to convert it again")
    convert(Path(wheel), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == WEIGHTS.read_bytes()


def test_real_recordings_get_the_tags_of_their_genre(musicnn: MusiCNNEncoder) -> None:
    """Emotify: 6 real excerpts of each genre. Read from MMREC_DATA, or from where the project keeps its data."""
    default = Path(__file__).parents[3] / "shared" / "data"
    clips = Path(os.environ.get("MMREC_DATA", default)) / "emotify" / "clips.parquet"
    if not clips.is_file():
        pytest.skip(f"{clips} is not there")
    import pandas as pd
    import soundfile

    table = pd.read_parquet(clips).groupby("genre").head(6)
    means: dict[str, dict[str, float]] = {}
    for genre, rows in table.groupby("genre"):
        waves = []
        for data in rows["audio_ogg"]:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", frames=22_050 * 6)
            waves.append(Waveform(samples, rate))
        means[str(genre)] = dict(zip(TAGS, musicnn.tag(waves).mean(axis=0).tolist(), strict=True))
    assert best(means["classical"], 1) == ["classical"]
    assert {"techno", "electronic", "beat"} & set(best(means["electronic"], 3))
    assert "guitar" in best(means["rock"], 3)
    for genre, tag in (("classical", "classical"), ("electronic", "techno"), ("rock", "rock"), ("pop", "female")):
        assert max(means, key=lambda g, t=tag: means[g][t]) == genre  # type: ignore[misc]
