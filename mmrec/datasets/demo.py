"""The demo: real pictures and real music out of packages, and simulated people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmrec.datasets.files import DatasetFiles, Progress, write_sources


def build_demo(
    destination: Path,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    pictures: int | None = None,
    music: int = 240,
    seconds: float = 10.0,
    users: int = 1500,
    size: int = 128,
) -> DatasetFiles:
    """Draw the pictures, play the music and simulate the people of the demo catalog into `destination`.

    `pictures` limits how many are drawn, by default all; `music` is the number of clips of `seconds`. Clips that are
    there are kept, so that a killed run goes on where it was, and a finished demo is left as it is.
    """
    from mmrec.datasets.demo_music import demo_music
    from mmrec.datasets.demo_pictures import demo_pictures
    from mmrec.datasets.simulate import simulate_people

    made = destination / "demo.json"
    options = {"seed": seed, "pictures": pictures, "music": music, "seconds": seconds, "users": users, "size": size}
    if made.is_file() and json.loads(made.read_text(encoding="utf-8")) == options:
        files = DatasetFiles(destination / "items.jsonl", destination / "interactions.csv", destination)
        if files.catalog.is_file() and files.interactions.is_file() and _media_are_there(files):
            return files

    def halves(half: int) -> Progress | None:  # pictures and music count for one half of the progress each
        return (lambda done, total: progress(half * 500 + done * 500 // max(total, 1), 1000)) if progress else None

    rows = _below("pictures", "image", demo_pictures(destination / "pictures", size, pictures, halves(0)))
    rows += _below("music", "audio", demo_music(destination / "music", music, seconds, halves(1)))
    files = write_sources(destination, rows, simulate_people(rows, users, seed))
    scratch = destination / ".demo.json"
    scratch.write_text(json.dumps(options) + "\n", encoding="utf-8")
    os.replace(scratch, made)
    return files


def _below(folder: str, column: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {column: f"{folder}/{row[column]}"} for row in rows]


def _media_are_there(files: DatasetFiles) -> bool:
    with files.catalog.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return all((files.media_root / row[c]).is_file() for row in rows for c in ("image", "audio") if row.get(c))
