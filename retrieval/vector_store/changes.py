"""An index that grows and shrinks: every change is a new version, published in one step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.files import write_array, write_index
from retrieval.vector_store import faiss_index
from retrieval.vector_store.build import Progress, Report, build, unit
from retrieval.vector_store.plan import Budget
from retrieval.vector_store.sources import Source
from retrieval.vector_store.store import VectorStore
from retrieval.vector_store.versions import link, publish, verify, writing

if TYPE_CHECKING:
    import pyarrow as pa


def add(root: Path, source: Source, *, space: str) -> int:
    """Add rows; nothing is trained again. Returns how many were added (rows without a direction are left out).

    Raises ValueError if an id is there already (`update` replaces it), ForeignSpace for another space.
    """
    with _change(root) as (store, work):
        return _append(store, work, source, space, store.removed)


def update(root: Path, source: Source, *, space: str) -> int:
    """Replace the vectors and metadata of rows that are there. Raises ValueError if an id is not there, or its new
    vector is zero or not finite."""
    with _change(root) as (store, work):
        ids: list[str] = []
        for vectors, table in source.blocks(1 << 16):
            names = table["id"].to_pylist()
            lost = np.flatnonzero(~np.isfinite(unit(vectors)).all(axis=1))
            if len(lost):
                raise ValueError(f"the new vector of {names[lost[0]]!r} is zero or not finite: remove the row instead")
            ids += names
        return _append(store, work, source, space, store.removed | _rows(store, ids))


def remove(root: Path, ids: Sequence[str]) -> int:
    """Rows of these ids answer no more; their place is won back by `compact`. Raises ValueError if one is not there."""
    with _change(root) as (store, work):
        rows = _rows(store, ids)
        for name in ("index.faiss", "rows.arrow"):
            link(store.version / name, work / name)
        _publish(store, work, store.removed | rows)
        return int(rows.sum())


def compact(root: Path, progress: Progress | None = None) -> Report:
    """Build again from the vectors of the rows that are left, for the budget (or with the factory string) of before."""
    store = VectorStore.open(root)
    verify(store.version)
    about = store.about
    return build(
        root,
        store,
        space=store.space,
        budget=Budget(**about["budget"]),
        factory=None if about["chosen"] else about["report"]["factory"],
        about=about["source"],
        seed=about["seed"],
        progress=progress,
    )


@contextmanager
def _change(root: Path) -> Iterator[tuple[VectorStore, Path]]:
    """The current version, and an empty folder that becomes the next one."""
    root = Path(root)
    with writing(root):
        work = root / ".partial" / "change"
        shutil.rmtree(work, ignore_errors=True)
        store = VectorStore.open(root)
        work.mkdir(parents=True)
        try:
            yield store, work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _rows(store: VectorStore, ids: Sequence[str]) -> np.ndarray:
    mask = store.mask(ids=ids)
    if int(mask.sum()) != len(set(ids)) or len(set(ids)) != len(ids):
        found = store.table["id"].filter(mask).to_pylist()
        missing = sorted(set(ids) - set(found))
        raise ValueError(f"the index has no {missing[0]!r}" if missing else "an id is given twice")
    return mask


def _append(store: VectorStore, work: Path, source: Source, space: str, removed: np.ndarray) -> int:
    import pyarrow as pa

    index = faiss_index.load(store.version / "index.faiss")
    old = [name for name in store.about["files"] if name.startswith("vectors/")]
    number = max(int(Path(name).stem) for name in old) + 1
    schema, seen, added = store.table.schema, set[str](), 0
    taken = store.table["id"].filter(pa.array(~removed))
    with pa.ipc.new_file(str(work / "rows.arrow"), schema) as writer:
        writer.write_table(store.table)
        for vectors, table in source.blocks(1 << 16):
            store._check(vectors, space)
            units = unit(vectors)
            good = np.isfinite(units).all(axis=1)
            if not good.any():
                continue
            table = _fit(table.filter(pa.array(good)), schema)
            ids = table["id"].to_pylist()
            _refuse_known(ids, seen, taken)
            faiss_index.append(index, np.ascontiguousarray(units[good]), number)
            write_array(work / "vectors" / f"{number:05d}.npy", np.asarray(vectors[good]))
            writer.write_table(table)
            added, number = added + len(ids), number + 1
    write_index(work / "index.faiss", index)
    _publish(store, work, np.concatenate([removed, np.zeros(added, bool)]))
    return added


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the index; what it lacks is null, what the index lacks is dropped."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    return pa.table(columns, schema=schema)


def _refuse_known(ids: list[str], seen: set[str], taken: pa.ChunkedArray) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pc.is_in(pa.array(ids, taken.type), value_set=taken).to_numpy(zero_copy_only=False)
    twice = [name for name, there in zip(ids, known, strict=True) if there or name in seen]
    seen.update(ids)
    if twice or len(set(ids)) != len(ids):
        raise ValueError(f"{(twice or ids)[0]!r} is there already (or given twice): update replaces it")


def _publish(store: VectorStore, work: Path, removed: np.ndarray) -> None:
    for name in store.about["files"]:
        if name.startswith("vectors/"):
            link(store.version / name, work / name)
    write_array(work / "removed.npy", removed)
    about = {key: value for key, value in store.about.items() if key not in ("files", "parent")}
    about["rows"] = int(len(removed) - removed.sum())
    unchanged = {
        name: checksum
        for name, checksum in store.about["files"].items()
        if (work / name).is_file() and (work / name).samefile(store.version / name)
    }
    publish(store.version.parent.parent, work, about, unchanged)
