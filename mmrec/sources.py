"""Where a catalog comes from: rows, each with its place, read out of a folder, a table or a dataset."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from mmrec.errors import CatalogError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"}
TEXT_SUFFIXES = {".txt"}
TABLE_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
MAX_CELL = 16 * 2**20  # characters of one cell or line of a text table; a longer one is quarantined unread
MAX_TEXT = 100_000  # characters of text kept per item

_NOT_UTF8, _TOO_LONG = "\ufdd0", "\ufdd1"  # noncharacters of Unicode, which mark what could not be read


@dataclass(frozen=True)
class Row:
    """One row of a source: `where` a person finds it, and its cells; or, with `reason`, why it cannot be used."""

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class BadCell:
    """What stands in a cell that cannot be read, and why."""

    reason: str


@dataclass(frozen=True)
class Source:
    """Rows with the columns they may have; `media_root` is what their relative paths start from."""

    columns: list[str]
    rows: Iterable[Row]
    media_root: Path
    embedded: bool = False  # cells may hold the bytes of a picture or a sound
    id_from_row: bool = False  # a dataset without ids: the position names the row
    is_folder: bool = False  # titles and `folder` are names of files, which say nothing once the files are unreadable
    notes: tuple[str, ...] = ()


def open_source(path: Path) -> Source:
    """Find out what `path` is and open it. Raises `CatalogError` if it is nothing a catalog can be read from."""
    path = Path(path)
    if path.is_file():
        return _open_table(path)
    if not path.is_dir():
        raise CatalogError(f"There is no {path}.", mend="Give the folder, table or dataset that holds your items.")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved_dataset(path)
    for name in ("items", "metadata"):
        for suffix in TABLE_SUFFIXES:
            if (path / (name + suffix)).is_file():
                return _open_table(path / (name + suffix))
    files = sorted(_visible_files(path))
    if any(_kind(file) for file in files):
        return _open_folder(path, files)
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    if tables:
        return _open_parquet(tables, path)
    raise CatalogError(
        f"{path} holds no pictures, sounds or texts, no items{{{','.join(TABLE_SUFFIXES)}}} and no saved dataset.",
        mend="Give a folder of media, a CSV, JSONL or Parquet table, or a folder written by datasets' save_to_disk.",
    )


# A folder of media ----------------------------------------------------------------------------------------------------


def _visible_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    for kind, suffixes in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES), ("text", TEXT_SUFFIXES)):
        if suffix in suffixes:
            return None if kind == "text" and path.stem.lower() in {"readme", "license", "licence"} else kind
    return None


def _open_folder(root: Path, files: list[Path]) -> Source:
    items: dict[str, dict[str, Path]] = {}
    skipped: set[str] = set()
    for file in files:
        kind = _kind(file)
        if kind is None:
            skipped.add(file.suffix.lower() or file.name)
            continue
        relative = file.relative_to(root)
        parts = items.setdefault(relative.with_suffix("").as_posix(), {})
        if kind in parts:  # cat.jpg and cat.png: the second is an item of its own
            parts = items.setdefault(relative.as_posix(), {})
        parts[kind] = file
    notes = (f"Files of other kinds were left alone: {', '.join(sorted(skipped))}.",) if skipped else ()
    rows = (_folder_row(root, item_id, parts) for item_id, parts in items.items())
    return Source(["id", "title", "text", "image", "audio", "metadata"], rows, root, is_folder=True, notes=notes)


def _folder_row(root: Path, item_id: str, parts: dict[str, Path]) -> Row:
    path = Path(item_id)
    folder = path.parent.as_posix()
    text: str | BadCell = ""
    if "text" in parts:
        text = _read_text(parts["text"], root)
    values: dict[str, Any] = {"id": item_id, "title": words_of(path.stem), "text": text}
    if folder != ".":
        values["metadata"] = {"folder": folder}
    values |= {kind: str(parts[kind].relative_to(root)) for kind in ("image", "audio") if kind in parts}
    return Row(parts[min(parts, key=["image", "audio", "text"].index)].relative_to(root).as_posix(), values)


def _read_text(path: Path, root: Path) -> str | BadCell:
    if not path.resolve().is_relative_to(root.resolve()):
        return BadCell(f"{path.name} is a link that leads out of {root}")
    try:
        with path.open("rb") as file:
            head = file.read(4 * MAX_TEXT + 4)
        return head.decode("utf-8-sig", errors="strict" if len(head) < 4 * MAX_TEXT else "ignore")
    except UnicodeDecodeError:
        return BadCell(f"{path.name} is not UTF-8")
    except OSError as error:
        return BadCell(f"{path.name} cannot be read: {error}")


def words_of(name: str) -> str:
    """The words in the name of a file or folder."""
    return " ".join(name.replace("_", " ").replace("-", " ").replace("/", " ").split())


# Tables ---------------------------------------------------------------------------------------------------------------


def _open_table(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet([path], path.parent)
    if suffix in (".jsonl", ".ndjson"):
        columns = list(dict.fromkeys(chain.from_iterable(row.values for row in json_rows(path))))
        return Source(columns, json_rows(path), path.parent)
    if suffix in (".csv", ".tsv"):
        header, delimiter = csv_header(path)
        return Source(header, _csv_rows(path, header, delimiter), path.parent)
    raise CatalogError(
        f"{path} is not a table that can be read.", mend=f"Give a file that ends in {', '.join(TABLE_SUFFIXES)}."
    )


def _lines(file: IO[bytes]) -> Iterator[str]:
    """The lines of a text file, never more than MAX_CELL of one in memory; marks stand for what cannot be read."""
    first = True
    while line := file.readline(MAX_CELL):
        if len(line) == MAX_CELL and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_CELL)) and not rest.endswith(b"\n"):
                pass
            yield _TOO_LONG + "\n"
            continue
        try:
            yield line.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError:
            yield _NOT_UTF8 + line.decode("ascii", "replace")
        first = False


def csv_header(path: Path) -> tuple[list[str], str]:
    """Column names of a CSV or TSV and the character between its cells. Raises `CatalogError`."""
    with path.open("rb") as file:
        line = next(_lines(file), "")
    if not line.strip() or _NOT_UTF8 in line or _TOO_LONG in line:
        raise CatalogError(
            f"{path} does not begin with a line of column names in UTF-8.", mend="Save the table as UTF-8 CSV."
        )
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=line.count)
    try:
        header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise CatalogError(
            f"The column names of {path} cannot be read ({error}).", mend="Save the table as UTF-8 CSV."
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CatalogError(
            f"{path} has more than one column {twice[0]!r}.", mend="Give every column a name of its own."
        )
    return header, delimiter


def _csv_rows(path: Path, header: list[str], delimiter: str) -> Iterator[Row]:
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with path.open("rb") as file:
            reader = csv.reader(_lines(file), delimiter=delimiter)
            try:
                next(reader)
            except csv.Error as error:  # a quotation mark left open takes in the lines below
                raise CatalogError(
                    f"The column names of {path} cannot be read ({error}).", mend="Save the table as UTF-8 CSV."
                ) from error
            while True:
                where = f"{path.name} line {reader.line_num + 1}"
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(where, reason=f"cannot be read as CSV ({error}); is a quotation mark left open?")
                    continue
                if reason := _unreadable("".join(cells)):
                    yield Row(where, reason=reason)
                elif cells and len(cells) != len(header):
                    yield Row(where, reason=f"has {len(cells)} cells where the header has {len(header)}")
                elif cells:
                    yield Row(where, dict(zip(header, cells, strict=True)))
    finally:
        csv.field_size_limit(limit)


def _unreadable(text: str) -> str:
    if _NOT_UTF8 in text:
        return "is not UTF-8"
    return f"is longer than {MAX_CELL:,} bytes" if _TOO_LONG in text else ""


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, line by line; `where` ends in the number of the line."""
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            where = f"{path.name} line {number}"
            if reason := _unreadable(line):
                yield Row(where, reason=reason)
                continue
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(where, reason=f"is not JSON: {error}")
                continue
            if isinstance(values, dict):
                yield Row(where, values)
            else:
                yield Row(where, reason=f"is a JSON {type(values).__name__} where an object should be")


def _open_parquet(paths: list[Path], media_root: Path) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        schemas = [pq.read_schema(path) for path in paths]
        columns = list(dict.fromkeys(chain.from_iterable(schema.names for schema in schemas)))
    except damage as error:
        raise CatalogError(f"{paths[0]} cannot be read as Parquet: {error}", mend="Write the table anew.") from error

    def rows() -> Iterator[Row]:
        for path in paths:
            start = 0
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
                    yield from _batch_rows(batch, path.name, start)
                    start += len(batch)
            except damage as error:  # in a page of it
                raise CatalogError(
                    f"{path} cannot be read as Parquet beyond row {start}: {error}", mend="Write the table anew."
                ) from error

    return Source(columns, rows(), media_root, embedded=any(_holds_bytes(schema) for schema in schemas))


def _holds_bytes(schema: Any) -> bool:
    import pyarrow.types as types

    def holds(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    return any(
        holds(column.type) or (types.is_struct(column.type) and any(holds(part.type) for part in column.type))
        for column in schema
    )


def _batch_rows(batch: Any, name: str, start: int) -> Iterator[Row]:
    for i in range(len(batch)):
        where = f"{name} row {start + i + 1}"
        try:
            yield Row(where, batch.slice(i, 1).to_pylist()[0])
        except UnicodeDecodeError:
            yield Row(where, reason="is not UTF-8")


# Datasets of Hugging Face ---------------------------------------------------------------------------------------------


def _open_saved_dataset(path: Path) -> Source:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library meets in a damaged folder
        raise CatalogError(
            f"{path} looks like a saved dataset but cannot be read: {error}", mend="Write it again with save_to_disk."
        ) from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {path.name: loaded}
    columns = list(dict.fromkeys(chain.from_iterable(split.column_names for split in splits.values())))

    def rows() -> Iterator[Row]:
        for name, split in splits.items():
            labels = {c: f for c, f in split.features.items() if isinstance(f, datasets.ClassLabel)}
            start = 0
            for table in split.with_format("arrow").iter(batch_size=64):
                for row in _batch_rows(table, str(name), start):
                    named = {c: f.int2str(v) for c, f in labels.items() if (v := row.values.get(c)) is not None}
                    yield Row(row.where, row.values | named, row.reason)
                start += len(table)

    embedded = any(_holds_bytes(split.data.schema) for split in splits.values())
    return Source(columns, rows(), path, embedded=embedded, id_from_row=True)
