"""Train, measure and show the built-in picture decoder on the demo pictures: how the shipped weights came to be.

    python -m mmrec.datasets.demo_image_decoder train WORK      # pictures, embeddings, checkpoints and WORK/decoder
    python -m mmrec.datasets.demo_image_decoder measure         # round trip of the shipped weights on held-out pictures
    python -m mmrec.datasets.demo_image_decoder sheet SHEET.png # held-out pictures beside what is drawn from them

A tenth of the pictures, always the same, is held out of the training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion.decoders.base import load_decoder
from mmrec.datasets.demo_pictures import demo_pictures
from mmrec.progress import progress

ENCODER = "efficientnet_lite0"


def held_out(count: int) -> np.ndarray:
    """Sorted indices of the tenth of `count` pictures that no training sees."""
    return np.sort(np.random.default_rng(0).permutation(count)[: count // 10])


def prepare(work: Path) -> tuple[list[dict[str, Any]], list[Path], np.ndarray]:
    """Draw and embed the demo pictures below `work` (once): rows, paths and embeddings float32 `[N, 1280]`."""
    from encoders.registry import load_encoder

    with progress("drawing the demo pictures") as tick:
        rows = demo_pictures(work / "pictures", progress=tick)
    paths, saved = [work / "pictures" / row["image"] for row in rows], work / "embeddings.npy"
    if not saved.is_file():
        encoder, parts = load_encoder(ENCODER), []
        with progress("embedding them") as tick:
            for begin in range(0, len(paths), 32):
                parts.append(encoder.encode([Image.open(path) for path in paths[begin : begin + 32]], "image"))
                tick(min(begin + 32, len(paths)), len(paths))
        np.save(saved, np.concatenate(parts))
    return rows, paths, np.load(saved, allow_pickle=False)


def train(work: Path, seed: int = 0, everything: bool = False) -> None:
    """Train into `work/decoder`, going on where a killed run was; `everything` holds nothing out."""
    import torch

    from diffusion.decoders.image_training import ImageTrainingConfig, train_image_decoder
    from encoders.registry import load_encoder

    rows, paths, embeddings = prepare(work)
    kept = np.arange(len(rows)) if everything else np.setdiff1d(np.arange(len(rows)), held_out(len(rows)))
    encoder = load_encoder(ENCODER)

    def embed(pictures: list[Image.Image]) -> np.ndarray:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.autocast(device, torch.bfloat16):  # twice as fast, and cosine .999 to full precision
            return encoder.encode(pictures, "image")

    with progress("training the picture decoder", "steps") as tick:
        decoder = train_image_decoder(
            [paths[i] for i in kept],
            embeddings[kept],
            ImageTrainingConfig(),
            seed=seed,
            checkpoint_dir=work / ("checkpoints-everything" if everything else "checkpoints"),
            progress=tick,
            embed=embed,
        )
    decoder.save_pretrained(work / "decoder")


def measure(decoder_name: str, work: Path, seed: int = 0) -> dict[str, float]:
    """Draw the held-out pictures from their embeddings, embed the drawings, and see what they are taken for.

    "group_hit" is the rate at which the catalog picture most like the drawing (centred cosine; the whole catalog, the
    held-out ones among it) is of the seed's own group; "group_hit_others" leaves the seed's own picture out of the
    catalog, and "group_hit_ceiling" does so for the real picture instead of the drawing; "chance" is the hit rate of a
    random catalog picture. "itself@10" is the rate at which the seed's own picture is among the ten most like.
    """
    from encoders.registry import load_encoder

    rows, _, embeddings = prepare(work)
    seeds = held_out(len(rows))
    decoder = load_decoder(decoder_name, ENCODER)
    drawn: list[Any] = []
    with progress("drawing", "pictures") as tick:
        for i, row in enumerate(seeds):
            drawn += decoder.decode(embeddings[[row]], seed=seed, first=i)
            tick(i + 1, len(seeds))
    again = load_encoder(ENCODER).encode(drawn, "image")

    def likeness(vectors: np.ndarray) -> np.ndarray:
        a, b = vectors - embeddings.mean(0), embeddings - embeddings.mean(0)
        return (a @ b.T) / (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1))

    drawing, real = likeness(again), likeness(embeddings[seeds])  # [n, N]
    place = (drawing > drawing[np.arange(len(seeds)), seeds][:, None]).sum(axis=1)
    result = {
        "pictures": float(len(seeds)),
        "itself@1": float((place < 1).mean()),
        "itself@10": float((place < 10).mean()),
    }
    result["itself@10_chance"] = 10 / len(rows)
    for label in ("group", "subgroup"):
        names = np.array([row["metadata"][label] for row in rows])
        shares = np.unique(names, return_counts=True)[1] / len(names)

        def hits(scores: np.ndarray, others: bool, names: np.ndarray = names) -> float:
            scores = scores.copy()
            if others:
                scores[np.arange(len(seeds)), seeds] = -np.inf
            return float((names[scores.argmax(axis=1)] == names[seeds]).mean())

        result[f"{label}_hit"] = hits(drawing, others=False)
        result[f"{label}_hit_others"] = hits(drawing, others=True)
        result[f"{label}_hit_ceiling"] = hits(real, others=True)
        result[f"{label}_chance"] = float((shares**2).sum())
    return result


def sheet(decoder_name: str, work: Path, target: Path, columns: int = 8, lines: int = 5, side: int = 96) -> None:
    """Save a table of held-out pictures, each beside two drawings of it with different seeds."""
    rows, paths, embeddings = prepare(work)
    decoder = load_decoder(decoder_name, ENCODER)
    chosen = np.random.default_rng(1).permutation(held_out(len(rows)))[: columns * lines]
    gap = 10
    canvas = Image.new("RGB", (columns * (3 * side + gap) - gap, lines * (side + gap) - gap), "#dddddd")
    for k, i in enumerate(chosen):
        left, top = k % columns * (3 * side + gap), k // columns * (side + gap)
        pictures = [Image.open(paths[i]).convert("RGB")]
        pictures += [decoder.decode(embeddings[[i]], seed=seed)[0] for seed in (0, 1)]  # type: ignore[misc]
        for j, picture in enumerate(pictures):
            canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left + j * side, top))
    canvas.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """The three commands above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train into WORK/decoder; run again, it goes on where it was")
    training.add_argument("work", type=Path)
    training.add_argument("--everything", action="store_true", help="hold nothing out")
    measuring = commands.add_parser("measure", help="print the round trip on held-out pictures")
    showing = commands.add_parser("sheet", help="save held-out pictures beside what is drawn from them")
    showing.add_argument("target", type=Path)
    for command in (measuring, showing):
        command.add_argument("--decoder", default="builtin_image", help="a name or a folder")
        command.add_argument("--work", type=Path, help="where pictures and embeddings are, or are to be kept")
    for command in (training, measuring):
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        if arguments.command == "train":
            train(work, arguments.seed, arguments.everything)
        elif arguments.command == "measure":
            print(json.dumps(measure(arguments.decoder, work, arguments.seed), indent=2))
        else:
            sheet(arguments.decoder, work, arguments.target)


if __name__ == "__main__":
    main()
