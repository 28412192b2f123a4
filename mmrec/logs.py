"""Logs as tables: reads a CSV, TSV, JSONL or Parquet of events whole, and its cells as ids, numbers and times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmrec.errors import CatalogError, InteractionsError
from mmrec.sources import csv_header, json_rows

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ALIASES = {
    "user": ("user", "user_id", "userid", "uid", "person", "listener", "customer_id", "reviewer_id", "account"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "movie_id", "track_id", "song_id", "product_id", "asin",
             "sku"),
    "time": ("time", "timestamp", "ts", "datetime", "date", "created_at", "event_time", "unix_time"),
    "rating": ("rating", "score", "stars", "overall", "preference", "liked"),
    "behaviour": ("behaviour", "behavior", "event", "event_type", "action"),
}  # fmt: skip


@dataclass(frozen=True)
class Log:
    """A log of n rows: `table` holds its columns by their names here, `numbers` int64 [n] where the rows stand."""

    table: pa.Table
    numbers: np.ndarray
    not_utf8: np.ndarray  # bool [n]
    unreadable: list[tuple[int, str, str]]  # rows that are not in the table: number, reason, what they say
    columns: dict[str, str]  # column of the log -> what it is read as


def read_log(path: Path, given: Mapping[str, str]) -> Log:
    """Read `path`; `given` maps its own column names to those of `ALIASES`. Raises `InteractionsError`."""
    import pyarrow as pa

    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_json,
        ".ndjson": _read_json,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if not path.is_file() or reader is None:
        raise InteractionsError(
            f"{path} is no log that can be read." if path.exists() else f"There is no {path}.",
            mend=f"Give a file that ends in {', '.join(readers)}.",
        )
    try:
        return reader(path, given)
    except (CatalogError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = error.message if isinstance(error, CatalogError) else f"{path} cannot be read: {error}"
        raise InteractionsError(message, mend="Mend the file, or write it anew as Parquet.") from error


def _name_columns(path: Path, found: list[str], given: Mapping[str, str]) -> dict[str, str]:
    listed = ", ".join(found) or "none"
    for own, ours in given.items():
        if own not in found:
            raise InteractionsError(
                f"{path} has no column {own!r}; it has: {listed}.", mend="Name one of these columns."
            )
        if ours not in ALIASES:
            raise InteractionsError(f"A column cannot be read as {ours!r}.", mend=f"Use one of: {', '.join(ALIASES)}.")
    names = dict(given)
    plain = {c: re.sub(r"[\s-]+", "_", c.strip().lower()) for c in found}
    for ours, aliases in ALIASES.items():
        if ours not in names.values():
            matches = [c for alias in aliases for c in found if plain[c] == alias and c not in names]
            names |= {matches[0]: ours} if matches else {}
    for ours in ("user", "item"):
        if ours not in names.values():
            raise InteractionsError(
                f"{path} has no column {ours!r}; it has: {listed}.",
                mend=f"Rename the column that holds it to {ours!r}, or say which it is: --column YOURS={ours}.",
            )
    return names


def _read_csv(path: Path, given: Mapping[str, str]) -> Log:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    header, delimiter = csv_header(path)
    names = _name_columns(path, header, given)
    bad: list[tuple[int, str, str]] = []
    blank: list[int] = []
    # pyarrow would lose a torn row whose text it cannot decode; every byte is a character of Latin-1
    encoding = "utf8" if _is_utf8(path) else "latin-1"

    def set_aside(row: csv.InvalidRow) -> str:
        if row.text.strip():
            text = row.text if encoding == "utf8" else row.text.encode("latin-1").decode("utf-8", "replace")
            bad.append(
                (row.number, f"has {row.actual_columns} cells where the header has {row.expected_columns}", text)
            )
        else:
            blank.append(row.number)
        return "skip"

    read = csv.read_csv(
        path,
        csv.ReadOptions(use_threads=False, block_size=32 << 20, column_names=header, skip_rows=1, encoding=encoding),
        csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=set_aside
        ),
        csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.binary()), include_columns=list(names), strings_can_be_null=False
        ),
    )
    if encoding != "utf8":
        cells = {c: [cell.decode().encode("latin-1") for cell in read[c].to_pylist()] for c in read.column_names}
        read = pa.table({c: pa.array(cells[c], pa.binary()) for c in cells})
    skipped = np.array([number for number, _, _ in bad] + blank, dtype=np.int64)
    numbers = np.setdiff1d(np.arange(2, len(read) + len(skipped) + 2), skipped)
    table, not_utf8 = _named(path, read, names)
    empty = np.logical_and.reduce([pc.equal(column, "").to_numpy() for column in table.columns])  # a blank line
    return Log(table.filter(~empty), numbers[~empty], not_utf8[~empty], bad, names)


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _read_parquet(path: Path, given: Mapping[str, str]) -> Log:
    import pyarrow.parquet as pq

    names = _name_columns(path, pq.read_schema(path).names, given)
    table = pq.read_table(path, columns=list(names))
    renamed, not_utf8 = _named(path, table, names)
    return Log(renamed, np.arange(1, len(table) + 1), not_utf8, [], names)


def _read_json(path: Path, given: Mapping[str, str]) -> Log:
    import pyarrow as pa
    from pyarrow import json

    def names_of(table: pa.Table) -> dict[str, str]:
        return _name_columns(path, table.column_names, given)

    bad: list[tuple[int, str, str]] = []
    try:
        table = json.read_json(path, json.ReadOptions(block_size=32 << 20))
        if any(pa.types.is_temporal(table[c].type) and ours in ("user", "item") for c, ours in names_of(table).items()):
            raise pa.ArrowInvalid("ids that look like dates are text")
        numbers = np.arange(1, len(table) + 1)
    except (pa.ArrowInvalid, UnicodeDecodeError):  # line by line then, which tells the broken ones
        rows = list(json_rows(path))
        bad = [(int(row.where.rsplit(" ", 1)[1]), row.reason, "") for row in rows if row.reason]
        good = [row for row in rows if not row.reason]
        numbers = np.array([int(row.where.rsplit(" ", 1)[1]) for row in good], dtype=np.int64)
        found = list(dict.fromkeys(chain.from_iterable(row.values for row in good)))
        cells = {c: [None if (v := row.values.get(c)) is None else str(v) for row in good] for c in found}
        table = pa.table(
            {c: pa.array([v and v.encode("utf-8", "replace").decode() for v in cells[c]], pa.string()) for c in found}
        )
    names = names_of(table)
    renamed, not_utf8 = _named(path, table, names)
    return Log(renamed, numbers, not_utf8, bad, names)


def _named(path: Path, table: pa.Table, names: dict[str, str]) -> tuple[pa.Table, np.ndarray]:
    """The columns under their names here, all text valid; and bool [n], whether a row had text that was not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    not_utf8 = np.zeros(len(table), dtype=bool)
    columns = {}
    for own, ours in names.items():
        column = table[own]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_nested(column.type):
            raise InteractionsError(f"{path}: column {own!r} holds {column.type}.", mend="Give one value per cell.")
        if _is_text(column) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            data = column.cast(pa.binary())
            try:
                column = pc.cast(data, pa.string())
            except pa.ArrowInvalid:
                cells = [(cell or b"").decode("utf-8", "surrogateescape") for cell in data.to_pylist()]
                column = pa.chunked_array([[cell.encode("utf-8", "replace").decode() for cell in cells]])
                not_utf8 |= [any("\udc80" <= c <= "\udcff" for c in cell) for cell in cells]
        columns[ours] = column
    return pa.table(columns), not_utf8


def _is_text(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def as_words(column: pa.ChunkedArray) -> pd.Series:
    """Cells as text without blanks around them, "" where there is none; 7.0 reads "7"."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < 2**53)
        if whole[~np.isnan(values)].all():
            column = pa.chunked_array([pa.array(np.where(whole, values, 0).astype(np.int64), mask=np.isnan(values))])
    words = pc.fill_null(column.cast(pa.string()), "")
    return pc.utf8_trim_whitespace(words).to_pandas().astype(object)


def as_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Cells as float64 [n], NaN where they are no number; and bool [n], whether there is anything in the cell."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_text(column):
        given = pc.is_valid(column).to_numpy()
        return pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy(), given
    words = as_words(column).str.lower().replace({"true": "1", "false": "0"})
    return pd.to_numeric(words, errors="coerce").to_numpy(np.float64), (words != "").to_numpy()


def as_seconds(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, str]:
    """Cells as float64 [n] seconds since 1970, NaN where they are no time; whether any is given; how they were read."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_temporal(column.type):
        stamps = column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)), safe=False).cast(pa.int64())
        given = pc.is_valid(column).to_numpy()
        return pc.fill_null(stamps.cast(pa.float64(), safe=False), np.nan).to_numpy() / 1e6, given, "dates"
    numbers, given = as_numbers(column)
    finite = np.isfinite(numbers)
    unit, divisor = "seconds", 1.0
    if finite.any():
        typical = float(np.median(np.abs(numbers[finite])))
        units = (("nanoseconds", 1e9), ("microseconds", 1e6), ("milliseconds", 1e3))
        # 1e8 s is in 1973: what would lie later than that in the finer unit is counted in it
        unit, divisor = next(((u, d) for u, d in units if typical > 1e8 * d), (unit, divisor))
    seconds = numbers / divisor
    left = given & ~finite
    if left.any() and _is_text(column):
        words = as_words(column)[left]
        dates = pd.to_datetime(words, errors="coerce", utc=True, format="ISO8601")
        values = dates.dt.tz_localize(None).to_numpy("datetime64[us]")
        seconds[left] = np.where(np.isnat(values), np.nan, values.astype(np.int64) / 1e6)
        unit = f"dates and {unit}" if finite.any() else "dates"
    return seconds, given, unit
