"""How much of an embedding survives the music decoder: play, listen again, look for the nearest item of the catalog.

    python benchmarks/music_round_trip.py -w workspaces/demo --record docs/results

The seeds are the demo's items whose works the shipped decoder never saw (`music_pairs.is_held_out`). *Alone*: the
decoder gets the item's own embedding and plays once. *As create plays*: the seed is the item's vector, as a dream would
be; `Recommender.create`'s steps make of it what lies around it in the catalog without the held-out items, play several
clips and keep the one that sounds most like it. The nearest item other than the seed's own hits if it is of the same
family, or instrument; the seed's own item is looked for among the ten nearest. Each rate is told beside its chance and
beside what the real clip reaches, and in times of chance.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from held_out import Items, report, unit

from diffusion.decoders.base import load_decoder
from diffusion.fidelity import choose, copy_threshold, presentable
from encoders.bridge import among_neighbours
from encoders.media import Waveform
from encoders.registry import load_encoder
from mmrec.datasets.music_pairs import is_held_out
from mmrec.progress import progress
from mmrec.recommender import MADE
from mmrec.workspace import Workspace

SEEDS = (0, 1, 2)
CANDIDATES, REFERENCES = MADE["audio"], 4  # as `Recommender.create` by default
RULES = ("family", "instrument")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("workspaces/demo"))
    parser.add_argument("--decoder", default="builtin_music", help="name of a decoder, or a folder that holds one")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()

    items = Items.of(Workspace(options.workspace), "audio")
    outside = np.array([is_held_out(items.catalog.item_ids[int(row)]) for row in items.rows])
    held, kept = np.flatnonzero(outside), np.flatnonzero(~outside)
    vectors, _ = items.learnt_without(held, kept)
    embeddings = items.embeddings
    encoder, decoder = load_encoder(items.space["encoder"]), load_decoder(options.decoder, items.space["space"])
    mean, scale = embeddings[kept].mean(axis=0), embeddings[kept].std(axis=0)
    catalog = unit(embeddings[kept] - mean)
    wanted = among_neighbours(vectors[held], vectors[kept], embeddings[kept])
    near = np.argsort(-(vectors[held] @ vectors[kept].T), axis=1, kind="stable")[:, :REFERENCES]
    guides, threshold = embeddings[kept][near], copy_threshold(catalog)

    def heard(clips: list) -> np.ndarray:
        return encoder.encode([Waveform(clip.samples, clip.rate) for clip in clips], "audio")

    def rates(seen: np.ndarray) -> dict[str, float]:
        order = np.argsort(-(unit((seen - mean) / scale) @ unit((embeddings - mean) / scale).T), axis=1)
        nearest = np.array([next(j for j in ranked if j != own) for ranked, own in zip(order, held, strict=True)])
        found = {rule: float((items.told(rule)[nearest] == items.told(rule)[held]).mean()) for rule in RULES}
        return found | {"own@10": float((order[:, :10] == held[:, None]).any(axis=1).mean())}

    chance = {"own@10": 10 / len(embeddings)}
    for rule in RULES:
        counts = Counter(items.told(rule))
        others = [(counts[value] - 1) / (len(embeddings) - 1) for value in items.told(rule)[held]]
        chance[rule] = float(np.mean(others))
    split = f"{len(held)} works never heard"
    found: dict[tuple[str, str, str], list[float]] = {}
    with progress("playing held-out works", unit="clips") as tick:
        done, total = 0, len(SEEDS) * len(held) * (CANDIDATES + 1)
        for seed in SEEDS:
            alone, best = [], []
            for i, row in enumerate(held):
                alone += decoder.decode(embeddings[[row]], seed=seed, first=i)
                several = decoder.decode(
                    np.repeat(wanted[[i]], CANDIDATES, axis=0),
                    references=np.repeat(guides[[i]], CANDIDATES, axis=0),
                    seed=seed,
                    first=i * CANDIDATES,
                )
                seen, fit = heard(list(several)), np.array([presentable(clip) for clip in several])
                best.append(seen[choose(unit(seen - mean), unit(wanted[i] - mean), catalog, threshold, fit)[0]])
                done += CANDIDATES + 1
                tick(done, total)
            rows = {"alone": rates(heard(alone)), f"as create plays, best of {CANDIDATES}": rates(np.array(best))}
            rows["the real clip"] = rates(embeddings[held])
            for model, values in rows.items():
                for metric, value in values.items():
                    found.setdefault((split, model, metric), []).append(value)
                    found.setdefault((split, model, f"{metric}, times chance"), []).append(value / chance[metric])
    for metric, value in chance.items():
        found[split, "chance", metric] = [value] * len(SEEDS)
    command = "python benchmarks/music_round_trip.py -w workspaces/demo --record docs/results"
    report(found, "demo music", "music-round-trip", command, SEEDS, options.record)


if __name__ == "__main__":
    main()
