"""Where vectors to be indexed come from: embedding shards on disk, or arrays; both are read a block at a time.

Shards lie as clip-retrieval, embedding-reader and `mmrec embed` write them:

    folder/
      img_emb/img_emb_0.npy            one array [n, D] per shard, float16 or float32
      metadata/metadata_0.parquet      one row per vector, in the same order
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from retrieval.files import read_json

if TYPE_CHECKING:
    import pyarrow as pa

NAMES_OF_IDS = ("item_id", "id", "key", "image_path", "url")
"""Columns that name a row, in the order they are looked for; without any of them a row is called by its number."""


class Source(Protocol):
    """Rows with a vector [D], a string id, and maybe more columns."""

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Raw vectors [n <= rows, D] and a table with a string column `id` and whatever else is known of them."""

    def fingerprint(self) -> Any:
        """JSON-able; tells this source from every other."""


@dataclass(frozen=True)
class Arrays:
    """Vectors [N, D] in memory with their ids, and a table of N rows of whatever else is known."""

    vectors: np.ndarray
    ids: Sequence[str]
    metadata: pa.Table | None = None

    def __post_init__(self) -> None:
        others = [] if self.metadata is None else [len(self.metadata)]
        if self.vectors.ndim != 2 or {len(self.ids), *others} != {len(self.vectors)}:
            raise ValueError(f"vectors {list(self.vectors.shape)}, {len(self.ids)} ids: need [n, D] and n of each")

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        import pyarrow as pa

        columns = {"id": pa.array(list(self.ids), pa.string())}
        if self.metadata is not None:
            columns |= {name: self.metadata[name] for name in self.metadata.column_names if name != "id"}
        table = pa.table(columns)
        for low in range(0, len(self), rows):
            yield self.vectors[low : low + rows], table.slice(low, rows)

    def fingerprint(self) -> Any:
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors).data)
        digest.update("\n".join(self.ids).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Shards:
    """Vectors [N, D] that lie in `files`, and the parquet file of each in `metadata` (none, or one per shard)."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    dim: int
    metadata: tuple[Path, ...]
    id_column: str | None
    space: str | None

    def __len__(self) -> int:
        return sum(self.counts)

    def part(self, number: int, parts: int) -> Shards:
        """Every `parts`-th shard from `number` on: the share of one machine of several."""
        if not 0 <= number < parts <= len(self.files):
            raise ValueError(f"part {number} of {parts} of {len(self.files)} shards: need 0 <= part < parts <= shards")
        mine = slice(number, None, parts)
        return Shards(self.files[mine], self.counts[mine], self.dim, self.metadata[mine], self.id_column, self.space)

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """As `Source.blocks`; the vectors are views of the memory-mapped file, and no block spans two shards."""
        start = 0
        for number, (file, count) in enumerate(zip(self.files, self.counts, strict=True)):
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
            table = self._table(number, start)
            for low in range(0, count, rows):
                yield vectors[low : low + rows], table.slice(low, rows)
            start += count

    def _table(self, number: int, start: int) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.metadata:
            return pa.table({"id": pa.array([str(row) for row in range(start, start + self.counts[number])])})
        table = pq.read_table(self.metadata[number])
        if len(table) != self.counts[number]:
            raise ValueError(
                f"{self.metadata[number]} has {len(table)} rows, {self.files[number]} {self.counts[number]} vectors: "
                "write both again"
            )
        if self.id_column is None:
            ids = pa.array([str(row) for row in range(start, start + len(table))])
        else:
            ids = table[self.id_column].cast(pa.string())
            table = table.drop_columns([self.id_column])
        if "id" in table.column_names:
            table = table.drop_columns(["id"])
        return table.add_column(0, "id", ids).combine_chunks()

    def fingerprint(self) -> Any:
        """Names, sizes and modification times of the files."""
        files = [*self.files, *self.metadata]
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def open_shards(folder: Path, modality: str | None = None, id_column: str | None = None) -> Shards:
    """Look at the shards of `folder` without reading the vectors.

    modality: which `<modality>_emb` folder (`img`, `image`, `text`, ...); needed where there are several. id_column:
    the metadata column that holds the ids (default: the first of `NAMES_OF_IDS`). Raises FileNotFoundError or
    ValueError that names the file.
    """
    folder = Path(folder)
    place = _place(folder, modality)
    files = sorted(place.glob("*.npy"), key=_in_order)
    if not files:
        raise FileNotFoundError(f"{place} holds no .npy shards: give a folder that clip-retrieval or mmrec embed wrote")
    shapes = [np.load(file, mmap_mode="r", allow_pickle=False).shape for file in files]
    for file, shape in zip(files, shapes, strict=True):
        if len(shape) != 2 or shape[1:] != shapes[0][1:]:
            raise ValueError(f"{file} is {list(shape)}, {files[0]} {list(shapes[0])}: every shard must be [n, D]")
    metadata = sorted((place.parent / "metadata").glob("*.parquet"), key=_in_order)
    if metadata and len(metadata) != len(files):
        raise ValueError(f"{place} has {len(files)} shards, {metadata[0].parent} {len(metadata)} tables: need one each")
    if [_in_order(file)[0] for file in metadata] != [_in_order(file)[0] for file in files][: len(metadata)]:
        raise ValueError(f"the numbers in the names of {place} and {metadata[0].parent} differ: name both alike")
    spaces = place.parent / "spaces.json"
    space = read_json(spaces).get(place.name.removesuffix("_emb"), {}).get("space") if spaces.is_file() else None
    return Shards(
        tuple(files),
        tuple(int(shape[0]) for shape in shapes),
        int(shapes[0][1]),
        tuple(metadata),
        _id_column(metadata, id_column),
        space,
    )


def gather(files: Sequence[Path], rows: np.ndarray) -> np.ndarray:
    """Rows int64 [n] (ascending) of the arrays in `files`, numbered one after another: float32 [n, D]."""
    parts, start = [], 0
    for file in files:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        mine = rows[(rows >= start) & (rows < start + len(array))] - start
        parts.append(np.asarray(array[mine], np.float32))
        start += len(array)
    return np.concatenate(parts)


def _place(folder: Path, modality: str | None) -> Path:
    if modality is not None:
        place = folder / f"{modality}_emb"
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is missing: {folder} has {_modalities(folder) or 'no embeddings'}")
        return place
    found = sorted(folder.glob("*_emb"))
    if len(found) > 1:
        raise ValueError(f"{folder} has {_modalities(folder)}: say which modality to index")
    return found[0] if found else folder


def _modalities(folder: Path) -> str:
    return ", ".join(path.name.removesuffix("_emb") for path in sorted(folder.glob("*_emb")))


def _in_order(file: Path) -> tuple[int, str]:
    """img_emb_2 before img_emb_10."""
    numbers = re.findall(r"\d+", file.stem)
    return (int(numbers[-1]) if numbers else -1), file.name


def _id_column(metadata: list[Path], wanted: str | None) -> str | None:
    if not metadata:
        if wanted is not None:
            raise ValueError(f"there is no metadata to read the column {wanted!r} from")
        return None
    import pyarrow.parquet as pq

    names = pq.read_schema(metadata[0]).names
    if wanted is not None and wanted not in names:
        raise ValueError(f"{metadata[0]} has no column {wanted!r}; it has {', '.join(names)}")
    return wanted or next((name for name in NAMES_OF_IDS if name in names), None)
