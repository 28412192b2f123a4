"""What the built-in music decoder learns from: scores beside the MusiCNN embedding of their sound.

    python -m mmrec.datasets.music_pairs PAIRS --clips 3300

arranges the works of `tunes.py` again and again on other instruments, in other tempi and keys, and plays and embeds
each arrangement. Killed and run again, it continues. One work in eight never comes in (`is_held_out`), so that the
round trip can be measured on works the decoder has not seen. What trains on the pairs is
`python -m diffusion.decoders.music_training PAIRS OUT`.
"""

from __future__ import annotations

import argparse
import os
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from diffusion.decoders.score import Score, encode_score, render, to_midi
from mmrec.datasets.tunes import STYLES, Piece, Work, arrange, read_work, works

SHARD = 33  # clips; three of each family
ENCODER = "musicnn"


def is_held_out(work_id: str) -> bool:
    """Tell whether a work is kept away from the decoder's training."""
    return zlib.crc32(work_id.encode()) % 8 == 0


def music_pairs(
    destination: Path,
    clips: int,
    *,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write at least `clips` scores and embeddings into `destination`, 33 to a file; files already there are kept."""
    destination.mkdir(parents=True, exist_ok=True)
    jobs = [(destination / f"pairs-{seed}-{shard:05d}.npz", shard, seed) for shard in range(-(-clips // SHARD))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_make_shard, jobs), start=1):
            if progress:
                progress(done, len(jobs))


def embed_clips(clips: list[np.ndarray], rate: int) -> np.ndarray:
    """Embed clips with MusiCNN, in bfloat16 where that is fast; float32 `[n, 200]`."""
    import torch

    from encoders.media import Waveform

    with torch.autocast("cpu", torch.bfloat16):  # three times as fast, and within 1 % of float32
        return np.asarray(_encoder().encode([Waveform(samples, rate) for samples in clips], "audio"), np.float32)


def random_score(family: str, rng: random.Random, *, held_out: bool = False) -> tuple[Work, Score] | None:
    """Arrange a work of `family` drawn by `rng`; None where that work cannot be used."""
    members = [work for work in works()[family] if is_held_out(work.id) == held_out]
    work = rng.choice(members)
    piece = _read(work)
    transpose = rng.choice([0, 0, 0, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6])
    score = piece and arrange(piece, family, rng, transpose=transpose)
    return (work, score) if score else None


def _make_shard(job: tuple[Path, int, int]) -> None:
    path, shard, seed = job
    if path.exists():
        return
    rng = random.Random(f"{seed}/{shard}")
    tokens, sounds = [], []
    for family in [*STYLES] * (SHARD // len(STYLES)):
        drawn = next(filter(None, (random_score(family, rng) for _ in range(20))), None)
        if drawn is None:
            continue
        tokens.append(encode_score(drawn[1]))
        clip = render(to_midi(drawn[1]))
        sounds.append(clip.samples)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with open(temporary, "wb") as file:
        np.savez(
            file,
            tokens=np.concatenate(tokens).astype(np.int16),
            lengths=np.array([len(t) for t in tokens]),
            embeddings=embed_clips(sounds, clip.rate),
        )
    os.replace(temporary, path)


@lru_cache(maxsize=512)
def _read(work: Work) -> Piece | None:
    return read_work(work)


@lru_cache(maxsize=1)
def _encoder():  # type: ignore[no-untyped-def]
    import torch

    from encoders.registry import load_encoder

    torch.set_num_threads(1)
    return load_encoder(ENCODER, "cpu")


def main() -> None:
    """Make the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder the .npz files go to")
    parser.add_argument("--clips", type=int, default=3300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()

    def report(done: int, total: int) -> None:
        print(f"file {done} of {total}", flush=True)

    music_pairs(options.pairs, options.clips, seed=options.seed, processes=options.processes, progress=report)


if __name__ == "__main__":
    main()
