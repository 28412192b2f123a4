"""Encoding a catalog's media shard by shard: what is read while the encoder works, and what is kept of each shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.catalog import Catalog
from mmrec.engines import Engine, Files, Task, npy_bytes
from mmrec.errors import MmrecError
from mmrec.progress import progress
from mmrec.workspace import CHECKPOINTS, write_bytes, write_text

if TYPE_CHECKING:
    from encoders.base import Encoder

MODALITIES = ("text", "tags", "image", "audio")
FROM_FILES = ("image", "audio")
SHARD = 256
"""Items per shard: what a killed `embed` or a lost machine loses at most."""
READERS, READ_AHEAD = 4, 32
"""Threads that read media, and how many items they read while the encoder works on as many."""


def media_of(catalog: Catalog, modality: str) -> list[str]:
    """Per item its text, its tags with "|" between, or the path of its picture or sound; empty if it has none."""
    if modality == "text":
        return [catalog.describe(i) for i in range(len(catalog))]
    if modality == "tags":
        return ["|".join(catalog.tags(i)) for i in range(len(catalog))]
    path = catalog.image_path if modality == "image" else catalog.audio_path
    return [str(path(i) or "") for i in range(len(catalog))]


def read_media(what: str, modality: str) -> Any:
    """Text and tags as they are, or the picture or sound at a path, as an encoder takes it."""
    if modality not in FROM_FILES:
        return what
    from encoders.media import read_audio, read_image

    return read_image(Path(what)) if modality == "image" else read_audio(Path(what))


class ShardEncoder:
    """Reads and encodes items of one modality; the worker of `embed`. The encoder is loaded when it is first needed."""

    def __init__(self, name: str, modality: str) -> None:
        self.name, self.modality = name, modality

    @cached_property
    def encoder(self) -> Encoder:
        from encoders.registry import load_encoder

        return load_encoder(self.name)

    def __call__(self, task: Task) -> Files:
        """``media`` of one shard to its vectors and a record of what is in them."""
        vectors, present, failed = self.encode(task["media"])
        record = {
            "space": {"encoder": self.name, "space": self.encoder.space, "dim": self.encoder.dim},
            "present": present.tolist(),
            "failed": failed,
        }
        return {task["shard"]: npy_bytes(vectors), task["record"]: json.dumps(record).encode()}

    def encode(self, media: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
        """Vectors float32 [n, dim], which rows are there bool [n], and (row, reason) of what could not be used.

        Rows without the modality, or that could not be read, are zeros.
        """
        vectors = np.zeros((len(media), self.encoder.dim), np.float32)
        present = np.zeros(len(media), bool)
        failed: list[tuple[int, str]] = []
        for start, items in self._read(media):
            failed += [(row, str(item)) for row, item in enumerate(items, start) if isinstance(item, Exception)]
            usable = {row: item for row, item in enumerate(items, start) if item is not None}
            usable = {row: item for row, item in usable.items() if not isinstance(item, Exception)}
            if usable:
                vectors[list(usable)] = self.encoder.encode(list(usable.values()), self.modality)
                present[list(usable)] = True
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        failed += [(int(row), "the encoder gave no finite vector") for row in np.flatnonzero(~finite)]
        return np.where(finite[:, None], vectors, 0.0), present & finite, failed

    def _read(self, media: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """(first row, items) in turn; None stands for no media, a MediaError for what cannot be read.

        Words come all at once, so that the encoder can put those of like length together. Pictures and sounds are
        large: while some are encoded the next are read, and no more than these are in memory.
        """
        from encoders.media import MediaError

        def read(what: str) -> Any:
            try:
                return read_media(what, self.modality) if what else None
            except MediaError as error:
                return error

        if self.modality not in FROM_FILES:
            yield 0, [read(what) for what in media]
            return
        step = max(READ_AHEAD, getattr(self.encoder, "batch_size", 0))
        with ThreadPoolExecutor(READERS) as pool:
            ahead = [pool.submit(read, what) for what in media[:step]]
            for start in range(0, len(media), step):
                now, ahead = ahead, [pool.submit(read, what) for what in media[start + step : start + 2 * step]]
                yield start, [item.result() for item in now]


def write_embeddings(catalog: Catalog, names: dict[str, str], folder: Path, engine: Engine) -> None:
    """Write the artifact of `mmrec.stages.embed`, going on from the shards that lie in ``folder`` already.

    names: modality -> encoder.

    Raises:
        MmrecError: if machines of the engine do not hold the same weights of an encoder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = [range(start, min(start + SHARD, len(catalog))) for start in range(0, len(catalog), SHARD)]
    has = {modality: np.zeros(len(catalog), bool) for modality in MODALITIES}
    spaces: dict[str, dict[str, Any]] = {}
    failures: list[dict[str, str]] = []
    for modality, name in names.items():
        _encode_shards(media_of(catalog, modality), modality, name, shards, folder, engine)
        for number, rows in enumerate(shards):
            record = json.loads(_record(folder, modality, number).read_text(encoding="utf-8"))
            if spaces.setdefault(modality, record["space"]) != record["space"]:
                raise MmrecError(
                    f"shard {number} of {modality} was encoded into {record['space']}, others into {spaces[modality]}",
                    mend=f"install the same weights everywhere, delete {folder} and run mmrec embed again",
                )
            has[modality][rows.start : rows.stop] = record["present"]
            failures += [
                {"item_id": catalog.item_ids[rows[row]], "column": modality, "reason": reason}
                for row, reason in record["failed"]
            ]
    (folder / "metadata").mkdir(exist_ok=True)
    for number, rows in enumerate(shards):
        columns: dict[str, Any] = {"item_id": [catalog.item_ids[i] for i in rows]}
        columns |= {f"has_{modality}": has[modality][rows.start : rows.stop] for modality in MODALITIES}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number:05d}.parquet")
    schema = pa.schema([("item_id", pa.string()), ("column", pa.string()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(failures, schema=schema), folder / "quarantine.parquet")
    write_text(folder / "spaces.json", json.dumps(spaces, indent=1))


def _encode_shards(
    media: list[str], modality: str, name: str, shards: list[range], folder: Path, engine: Engine
) -> None:
    tasks: list[Task] = [
        {
            "shard": f"{modality}_emb/{modality}_emb_{number:05d}.npy",
            "record": str(_record(folder, modality, number).relative_to(folder)),
            "media": media[rows.start : rows.stop],
        }
        for number, rows in enumerate(shards)
        if not _record(folder, modality, number).is_file()
    ]
    done = len(media) - sum(len(task["media"]) for task in tasks)
    with progress(f"encoding {modality} with {name}") as tick:
        for task, files in zip(tasks, engine.run(ShardEncoder(name, modality), tasks), strict=True):
            for file, content in files.items():  # the record comes last: a shard that has one is whole
                write_bytes(folder / file, content)
            done += len(task["media"])
            tick(done, len(media))


def _record(folder: Path, modality: str, number: int) -> Path:
    return folder / CHECKPOINTS / f"{modality}_{number:05d}.json"
