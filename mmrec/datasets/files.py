"""What preparing a dataset leaves on disk: a catalog and a log that `mmrec ingest` reads like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec.errors import DatasetMissing

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetFiles:
    """Sources for ingest: a catalog table, a log, and the folder that the paths in the catalog start from."""

    catalog: Path
    interactions: Path
    media_root: Path


def write_sources(destination: Path, items: Iterable[dict[str, Any]], log: pd.DataFrame) -> DatasetFiles:
    """Write `items.jsonl` and `interactions.csv` in `destination`, each whole or not at all."""
    destination.mkdir(parents=True, exist_ok=True)
    files = DatasetFiles(destination / "items.jsonl", destination / "interactions.csv", destination)
    scratch = destination / ".items.jsonl"
    with scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    os.replace(scratch, files.catalog)
    scratch = destination / ".interactions.csv"
    log.to_csv(scratch, index=False, lineterminator="\n")
    os.replace(scratch, files.interactions)
    return files


def data_folder(data: Path | str | None, name: str) -> Path:
    """The folder of a dataset that is brought along: `data`, or `name` below it or below the folder in MMREC_DATA.

    Raises `DatasetMissing` if it is not there.
    """
    root = data if data is not None else os.environ.get("MMREC_DATA")
    candidates = [Path(root) / name, Path(root)] if root else []
    for candidate in candidates:
        if candidate.is_dir() and (candidate.name == name or candidate == candidates[0]):
            return candidate
    where = " or ".join(str(candidate) for candidate in candidates) or "no folder (MMREC_DATA is not set)"
    raise DatasetMissing(
        f"The dataset {name!r} was looked for in {where} and is not there.",
        mend=f"Give the folder that holds {name}/ as --data, or set MMREC_DATA to it.",
    )


def required(folder: Path, name: str) -> Path:
    """The file `name` in `folder`. Raises `DatasetMissing` if it is not there."""
    if not (folder / name).is_file():
        raise DatasetMissing(f"{folder} has no {name}.", mend="Bring the dataset as a whole, or give another folder.")
    return folder / name
