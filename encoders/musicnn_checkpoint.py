"""Convert the published MusiCNN weights (a TensorFlow checkpoint) to safetensors, with numpy alone.

A TensorFlow "tensor bundle" is a table of contents `.index` (a LevelDB sorted-string table: key -> protobuf entry with
dtype, shape, offset and size) beside raw little-endian data. Both formats are read here as far as this file needs them.

    python -m encoders.musicnn_checkpoint WHEEL_OR_FOLDER OUT.safetensors
"""

from __future__ import annotations

import argparse
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAGIC = 0xDB4775248B80FB57
FLOAT32 = 1
FOLDER = "musicnn/MTT_musicnn"

# layers of encoders.musicnn.MusiCNN in the order in which TensorFlow numbered the originals
CONVOLUTIONS = ["timbral.0", "timbral.1", "temporal.0", "temporal.1", "temporal.2", "mid.0", "mid.1", "mid.2"]
NORMS = ["norm", *[f"{layer}.norm" for layer in CONVOLUTIONS], "pooled_norm", "dense_norm"]
DENSE = ["dense", "tags"]
NORM_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def read_bundle(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Every float32 tensor of a single-shard bundle by its TensorFlow name. Raises ValueError for anything else."""
    if len(index) < 48 or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint: its closing magic number is wrong")
    _, _, at = _handle(index, len(index) - 48)  # the meta index, of no use here
    offset, size, _ = _handle(index, at)
    tensors: dict[str, np.ndarray] = {}
    for _, value in _block(index, offset, size):
        offset, size, _ = _handle(value, 0)
        for key, entry in _block(index, offset, size):
            numbers, parts, _ = _fields(entry)
            if not key or numbers.get(1) != FLOAT32 or numbers.get(3, 0) != 0:
                continue  # the header of the bundle, or counters of the optimizer
            dims = [part for number, part in _fields(parts.get(2, b""))[2] if number == 2]
            shape = [_fields(dim)[0].get(1, 0) for dim in dims]
            start, length = numbers.get(4, 0), numbers.get(5, 0)
            if length != 4 * int(np.prod(shape, dtype=np.int64)) or start + length > len(data):
                raise ValueError(f"tensor {key.decode()!r}: {length} bytes at {start} do not hold shape {shape}")
            tensors[key.decode()] = np.frombuffer(data, "<f4", length // 4, start).reshape(shape)
    return tensors


def to_torch_layout(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's own weights (no optimizer slots) under the names and in the axis order of encoders.musicnn."""

    def numbered(kind: str, number: int, part: str) -> np.ndarray:
        name = f"{kind}_{number}/{part}" if number else f"{kind}/{part}"
        if name not in tensors:
            raise ValueError(f"the checkpoint has no tensor {name!r}; is it MTT_musicnn?")
        return tensors[name]

    out: dict[str, np.ndarray] = {}
    for number, layer in enumerate(CONVOLUTIONS):
        kernel = numbered("conv2d", number, "kernel").transpose(3, 2, 0, 1)  # [out, in, time, frequency]
        if layer.startswith("mid"):
            kernel = kernel[:, 0].transpose(0, 2, 1)  # spans all features: a convolution in time [out, features, time]
        out[f"{layer}.conv.weight"] = kernel
        out[f"{layer}.conv.bias"] = numbered("conv2d", number, "bias")
    for number, layer in enumerate(NORMS):
        for theirs, ours in NORM_PARTS.items():
            out[f"{layer}.{ours}"] = numbered("batch_normalization", number, theirs)
    for number, layer in enumerate(DENSE):
        out[f"{layer}.weight"] = numbered("dense", number, "kernel").T
        out[f"{layer}.bias"] = numbered("dense", number, "bias")
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in out.items()}


def convert(source: Path, target: Path) -> dict[str, np.ndarray]:
    """Read the musicnn wheel (or its unpacked folder) and write `target`; returns what was written."""
    from safetensors.numpy import save_file

    names = [f"{FOLDER}/.index", f"{FOLDER}/.data-00000-of-00001"]
    if source.is_dir():
        index, data = ((source / name).read_bytes() for name in names)
    else:
        with zipfile.ZipFile(source) as wheel:
            index, data = (wheel.read(name) for name in names)
    weights = to_torch_layout(read_bundle(index, data))
    temporary = target.with_name(target.name + ".part")
    save_file(weights, temporary, metadata={"source": "musicnn 0.1.0 (PyPI), MTT_musicnn", "license": "ISC"})
    os.replace(temporary, target)
    return weights


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """The block handle at `at`: where the block starts, its size, and where the handle ends."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return offset, size, at


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries of a block: each key is stored as what it does not share with the key before it."""
    if table[offset + size] != 0:
        raise ValueError("a compressed checkpoint index; only uncompressed ones are read")
    block = table[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]  # restart points follow the entries
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _fields(message: bytes) -> tuple[dict[int, int], dict[int, bytes], list[tuple[int, bytes]]]:
    """A protobuf message by field number: its numbers, its last bytes, and all its bytes in order."""
    numbers: dict[int, int] = {}
    parts: list[tuple[int, bytes]] = []
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            numbers[number], at = _varint(message, at)
        elif kind == 5:
            numbers[number] = struct.unpack("<I", message[at : at + 4])[0]
            at += 4
        elif kind == 2:
            length, at = _varint(message, at)
            parts.append((number, message[at : at + length]))
            at += length
        else:
            raise ValueError(f"protobuf wire type {kind} in a checkpoint index")
    return numbers, dict(parts), parts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="musicnn-0.1.0-py3-none-any.whl, or the folder it unpacks to")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    written = convert(arguments.source, arguments.target)
    print(f"{arguments.target}: {len(written)} tensors, {sum(value.size for value in written.values()):,} numbers")
