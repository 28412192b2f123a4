"""How much of an embedding survives the music decoder: decode, listen again, look for the nearest item of the catalog.

    python -m mmrec.datasets.music_round_trip WORK --decoder builtin_music --seed 0

prints one JSON object. The seeds are the demo's items whose works the decoder never saw (`music_pairs.is_held_out`).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from diffusion.decoders.base import load_decoder
from mmrec.datasets.demo_music import demo_music
from mmrec.datasets.music_pairs import ENCODER, embed_clips, is_held_out


def round_trip(
    work: Path, decoder_name: str = "builtin_music", *, noise: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Return rates over the held-out items of the demo catalog, each beside its chance.

    `family` and `instrument`: the nearest other item has the seed's. `recall@10`: the seed's own item is among the ten
    nearest. `ceiling_*`: the same with the items' own embeddings instead of decoded clips. `noise` disturbs the seeds,
    in parts of the catalog's spread per dimension.
    """
    from encoders.media import read_audio
    from encoders.registry import load_encoder

    rows = demo_music(work)
    sounds = [read_audio(work / row["audio"]) for row in rows]
    catalog = np.concatenate([embed_clips([sound.samples], sound.rate) for sound in sounds])  # [N, 200]
    held = np.array([i for i, row in enumerate(rows) if is_held_out(row["item_id"])])
    decoder = load_decoder(decoder_name, load_encoder(ENCODER, "cpu").space)
    rng = np.random.default_rng(seed)
    seeds = catalog[held] + noise * catalog.std(axis=0) * rng.standard_normal((len(held), catalog.shape[1]))
    clips = decoder.decode(seeds.astype(np.float32), seed=seed)
    heard = np.concatenate([embed_clips([clip.samples], clip.rate) for clip in clips])  # type: ignore[union-attr]

    def places(vectors: np.ndarray) -> np.ndarray:
        a, b = ((v - catalog.mean(axis=0)) / catalog.std(axis=0) for v in (vectors, catalog))
        similarity = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        return np.argsort(-similarity, axis=1)  # [n, N]

    order, own_order = places(heard), places(catalog[held])
    result = {"items": float(len(rows)), "seeds": float(len(held)), "noise": noise, "seed": float(seed)}
    for key in ("family", "instrument"):
        values = np.array([row["metadata"][key] for row in rows])
        counts = Counter(values)
        for name, ranking in (("", order), ("ceiling_", own_order)):
            nearest = [next(j for j in ranking[i] if j != held[i]) for i in range(len(held))]
            result[name + key] = float(np.mean(values[nearest] == values[held]))
        result[f"{key}_chance"] = float(np.mean([(counts[v] - 1) / (len(rows) - 1) for v in values[held]]))
    result["recall@10"] = float(np.mean([held[i] in order[i, :10] for i in range(len(held))]))
    result["recall@10_chance"] = 10 / len(rows)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the demo's music; clips already there are kept")
    parser.add_argument("--decoder", default="builtin_music", help="name of a decoder, or a folder that holds one")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(round_trip(options.work, options.decoder, noise=options.noise, seed=options.seed), indent=2))


if __name__ == "__main__":
    main()
