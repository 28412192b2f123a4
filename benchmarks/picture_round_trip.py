"""Is what the picture decoder draws recognisable? Draw held-out pictures, encode the drawings, see what they pass for.

    python benchmarks/picture_round_trip.py -w workspaces/demo --record docs/results --sheet SHEET.png

A tenth of the workspace's pictures (another tenth per seed) is held out; the decoder is taught on the rest and draws
each held-out picture from its embedding. A drawing hits if the remembered picture nearest to it (centred cosine) is of
the same group as the picture that was held out. The real held-out picture, looked up the same way, is the ceiling, a
random remembered one is chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.decoders.builtin_image import BuiltinImageDecoder, ImageDecoderConfig, train_image_decoder
from encoders.registry import load_encoder
from mmrec import results
from mmrec.catalog import Catalog
from mmrec.progress import progress
from mmrec.stages import load_embeddings
from mmrec.workspace import Workspace

SEEDS = (0, 1, 2)
SHEET_COLUMNS, SHEET_DRAWINGS, THUMB = 14, 3, 96


def taught_without(
    paths: list[Path], embeddings: np.ndarray, space: str, seed: int
) -> tuple[BuiltinImageDecoder, np.ndarray, np.ndarray]:
    """The decoder, and the rows held out from it and left to it."""
    order = np.random.default_rng(seed).permutation(len(paths))
    held, kept = order[: len(paths) // 10], np.sort(order[len(paths) // 10 :])
    with progress(f"learning to draw, seed {seed}", unit="pictures") as tick:
        config = ImageDecoderConfig(space=space)
        decoder = train_image_decoder([paths[i] for i in kept], embeddings[kept], config, progress=tick)
    return decoder, held, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("workspaces/demo"))
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--sheet", type=Path, help="write held-out pictures above what was drawn of them")
    options = parser.parse_args()

    workspace = Workspace(options.workspace)
    data, catalog = load_embeddings(workspace), Catalog.load(workspace.require("catalog").path)
    rows = np.flatnonzero(data.present["image"])
    paths = [path for row in rows if (path := catalog.image_path(int(row)))]
    embeddings, space = data.vectors["image"][rows], data.spaces["image"]
    groups = np.array([catalog.metadata[int(row)].get("group", "") for row in rows])
    encoder = load_encoder(space["encoder"])

    def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a - embeddings.mean(axis=0), b - embeddings.mean(axis=0)
        return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T

    found: dict[str, list[float]] = {"picture decoder": [], "the real picture (ceiling)": [], "chance": []}
    for seed in SEEDS:
        decoder, held, kept = taught_without(paths, embeddings, space["space"], seed)
        drawn = encoder.encode(decoder.decode(embeddings[held], seed=seed), "image")

        def hit(vectors: np.ndarray, held: np.ndarray = held, kept: np.ndarray = kept) -> float:
            nearest = kept[likeness(vectors, embeddings[kept]).argmax(axis=1)]
            return float((groups[nearest] == groups[held]).mean())

        found["picture decoder"].append(hit(drawn))
        found["the real picture (ceiling)"].append(hit(embeddings[held]))
        found["chance"].append(float((groups[kept][:, None] == groups[held]).mean()))
        if seed == SEEDS[0] and options.sheet:
            write_sheet(decoder, [paths[i] for i in held[:SHEET_COLUMNS]], embeddings[held], options.sheet)
    for model, values in found.items():
        print(f"{model}: group hit rate {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} over seeds {SEEDS}")
    if options.record:
        records = [
            results.Record(
                dataset="demo pictures",
                split="held-out tenth",
                model=model,
                metric="group_hit_rate",
                mean=float(np.mean(values)),
                std=float(np.std(values, ddof=1)),
                seeds=SEEDS,
                command="python benchmarks/picture_round_trip.py -w workspaces/demo --record docs/results",
                commit=results.commit(),
                machine=results.machine(),
            )
            for model, values in found.items()
        ]
        print(results.write_records("picture-round-trip", records, options.record))


def write_sheet(decoder: BuiltinImageDecoder, paths: list[Path], embeddings: np.ndarray, target: Path) -> None:
    """Held-out pictures in the first line, what was drawn of each with several seeds below."""
    sheet = Image.new("RGB", (len(paths) * THUMB, (SHEET_DRAWINGS + 1) * THUMB + 8), "white")
    for column, path in enumerate(paths):
        drawings = [decoder.decode(embeddings[[column]], seed=seed)[0] for seed in range(SHEET_DRAWINGS)]
        for line, picture in enumerate([Image.open(path).convert("RGB"), *drawings]):
            place = (column * THUMB, line * THUMB + (8 if line else 0))
            sheet.paste(picture.resize((THUMB, THUMB), Image.Resampling.LANCZOS), place)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
