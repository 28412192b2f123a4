"""Is what the picture decoder draws recognisable? Draw held-out items, look the drawings up, see what they pass for.

    python benchmarks/picture_round_trip.py -w workspaces/demo --record docs/results --sheet SHEET.png

A tenth of the workspace's items with pictures (another tenth per seed) is held out of everything that learns: the
decoder, the fusion, the bridge. A drawing hits if the item nearest to it is of the same group as the one held out.

Two questions are asked. *Items*, what the product does: the seed is the held-out item's vector, as a dream would be;
`Recommender.create`'s steps draw it, guided by its neighbours, the best of some candidates; and it is looked up as
`mmrec search --image` does, through the bridge. Since it is drawn out of real neighbours, which the look-up finds
again, a row leaves those out. *Pictures*, as this benchmark asked at first and the harder one: the decoder gets the
held-out picture's embedding alone, draws once, and the look-up is among pictures. Real pictures, looked up the same
way, are the ceiling, a random item is chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from held_out import Items, report, unit
from PIL import Image

from diffusion.decoders.builtin_image import BuiltinImageDecoder, ImageDecoderConfig, train_image_decoder
from diffusion.fidelity import choose, copy_threshold
from encoders.bridge import among_neighbours
from encoders.registry import load_encoder
from mmrec.progress import progress
from mmrec.recommender import MADE
from mmrec.workspace import Workspace

SEEDS = (0, 1, 2)
CANDIDATES, REFERENCES = MADE["image"], 4  # as `Recommender.create` by default
SHEET_COLUMNS, SHEET_DRAWINGS, THUMB = 14, 3, 96


def taught(pictures: Items, paths: list[Path], kept: np.ndarray, seed: int) -> BuiltinImageDecoder:
    with progress(f"learning to draw, seed {seed}", unit="pictures") as tick:
        config = ImageDecoderConfig(space=pictures.space["space"])
        return train_image_decoder([paths[i] for i in kept], pictures.embeddings[kept], config, progress=tick)


def measure(
    pictures: Items, paths: list[Path], encode: Callable[[list[Image.Image]], np.ndarray], seed: int, sheet: Path | None
) -> dict[tuple[str, str, str], float]:
    """(split, model, metric) -> value, for one tenth held out."""
    order = np.random.default_rng(seed).permutation(len(pictures.rows))
    held, kept = order[: len(order) // 10], np.sort(order[len(order) // 10 :])
    embeddings, groups = pictures.embeddings, pictures.told("group")
    vectors, bridge = pictures.learnt_without(held, kept)
    decoder = taught(pictures, paths, kept, seed)
    mean = embeddings[kept].mean(axis=0)
    catalog = unit(embeddings[kept] - mean)

    def among_pictures(seen: np.ndarray) -> np.ndarray:
        return unit(seen - mean) @ catalog.T  # [h, kept]

    def among_items(seen: np.ndarray) -> np.ndarray:
        return unit(bridge.transform(seen)) @ vectors[kept].T

    def hits(likeness: np.ndarray, left_out: np.ndarray | None = None) -> float:
        if left_out is not None:
            np.put_along_axis(likeness, left_out, -np.inf, axis=1)
        return float((groups[kept][likeness.argmax(axis=1)] == groups[held]).mean())

    near = np.argsort(-(vectors[held] @ vectors[kept].T), axis=1, kind="stable")[:, :REFERENCES]
    wanted = among_neighbours(vectors[held], vectors[kept], embeddings[kept])
    guides = embeddings[kept][near]
    several = decoder.decode(
        np.repeat(wanted, CANDIDATES, axis=0), references=np.repeat(guides, CANDIDATES, axis=0), seed=seed
    )
    seen = encode(several).reshape(len(held), CANDIDATES, -1)
    threshold, fit = copy_threshold(catalog), np.ones(CANDIDATES, bool)
    pairs = zip(unit(seen - mean), unit(wanted - mean), strict=True)
    chosen = [choose(made, asked, catalog, threshold, fit) for made, asked in pairs]
    best = np.array([s[choice] for s, (choice, _, _) in zip(seen, chosen, strict=True)])
    alone = encode(decoder.decode(embeddings[held], seed=seed))
    if sheet is not None:
        write_sheet([paths[i] for i in held], several, sheet)

    items, old, hit = "held-out items", "held-out tenth", "group_hit_rate"
    chance = float((groups[kept][:, None] == groups[held]).mean())
    return {
        (items, f"drawn, best of {CANDIDATES}", hit): hits(among_items(best)),
        (items, f"drawn, best of {CANDIDATES}, its neighbours left out", hit): hits(among_items(best), near),
        (items, "drawn, first candidate", hit): hits(among_items(seen[:, 0])),
        (items, "the real picture", hit): hits(among_items(embeddings[held])),
        (items, "chance", hit): chance,
        (items, f"drawn, best of {CANDIDATES}", "copies"): float(np.mean([c[at] > threshold for at, _, c in chosen])),
        (old, "picture decoder", hit): hits(among_pictures(alone)),
        (old, f"picture decoder, as create draws, best of {CANDIDATES}", hit): hits(among_pictures(best)),
        (old, "the real picture (ceiling)", hit): hits(among_pictures(embeddings[held])),
        (old, "chance", hit): chance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("workspaces/demo"))
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--sheet", type=Path, help="write held-out pictures above what was drawn of them")
    options = parser.parse_args()

    pictures = Items.of(Workspace(options.workspace), "image")
    paths = [path for row in pictures.rows if (path := pictures.catalog.image_path(int(row)))]
    encoder = load_encoder(pictures.space["encoder"])
    found: dict[tuple[str, str, str], list[float]] = {}
    for seed in SEEDS:
        sheet = options.sheet if seed == SEEDS[0] else None
        for key, value in measure(pictures, paths, lambda drawn: encoder.encode(drawn, "image"), seed, sheet).items():
            found.setdefault(key, []).append(value)
    command = "python benchmarks/picture_round_trip.py -w workspaces/demo --record docs/results"
    report(found, "demo pictures", "picture-round-trip", command, SEEDS, options.record)


def write_sheet(paths: list[Path], drawn: list[Image.Image], target: Path) -> None:
    """Held-out pictures in the first line, the first drawings of each below."""
    sheet = Image.new("RGB", (SHEET_COLUMNS * THUMB, (SHEET_DRAWINGS + 1) * THUMB + 8), "white")
    for column, path in enumerate(paths[:SHEET_COLUMNS]):
        drawings = drawn[column * CANDIDATES : column * CANDIDATES + SHEET_DRAWINGS]
        for line, picture in enumerate([Image.open(path).convert("RGB"), *drawings]):
            place = (column * THUMB, line * THUMB + (8 if line else 0))
            sheet.paste(picture.resize((THUMB, THUMB), Image.Resampling.LANCZOS), place)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
