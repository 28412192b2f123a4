"""The catalog: what there is to recommend, as `items.parquet` beside `catalog.json` on disk and `Catalog` in memory."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from mmrec.errors import CatalogError
from mmrec.sources import AUDIO_SUFFIXES, IMAGE_SUFFIXES, MAX_TEXT, BadCell, Source, open_source, words_of

Progress = Callable[[int, int], None]

ALIASES = {
    "id": (
        "id",
        "item_id",
        "itemid",
        "item",
        "sku",
        "asin",
        "product_id",
        "movie_id",
        "movieid",
        "track_id",
        "song_id",
    ),
    "title": ("title", "name", "item_name", "product_name", "movie_title", "track_name", "headline"),
    "text": ("text", "description", "caption", "summary", "abstract", "body", "content"),
    "image": ("image", "image_path", "image_file", "img", "picture", "photo", "poster", "cover", "thumbnail"),
    "audio": ("audio", "audio_path", "audio_file", "sound", "clip", "recording"),
    "file": ("file_name", "filename", "file", "path"),  # a picture or a sound, by its suffix
}
SCHEMA = ("item_id", "title", "text", "image", "audio", "metadata")


@dataclass(frozen=True)
class Catalog:
    """Items in catalog order: entry i of every list belongs to item index i.

    `images` and `audios` are paths relative to `media_root`, None where the item has none.
    """

    item_ids: list[str]
    titles: list[str]
    texts: list[str]
    images: list[str | None]
    audios: list[str | None]
    metadata: list[dict[str, Any]]
    media_root: Path

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id to item index."""
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def image_path(self, i: int) -> Path | None:
        image = self.images[i]
        return self.media_root / image if image is not None else None

    def audio_path(self, i: int) -> Path | None:
        audio = self.audios[i]
        return self.media_root / audio if audio is not None else None

    def describe(self, i: int) -> str:
        """The words of item i, as the text encoder reads them; empty if it has none."""
        title, text = self.titles[i].strip(), self.texts[i].strip()
        if not title or text.lower().startswith(title.lower()):
            return text
        return f"{title}. {text}" if text else title

    def tags(self, i: int) -> list[str]:
        """The tags of item i: its metadata `tags`, a list or words with "|" or "," between."""
        given = self.metadata[i].get("tags") or []
        parts = re.split(r"[|,]", given) if isinstance(given, str) else given if isinstance(given, list) else [given]
        return [tag for part in parts if (tag := str(part).replace("|", " ").strip())]

    def extend(self, other: Catalog) -> Catalog:
        """This catalog with the items of `other` behind it; the item indices of this one stay as they are.

        Raises `CatalogError` if an id is in both.
        """
        both = [item_id for item_id in other.item_ids if item_id in self.index]
        if both:
            raise CatalogError(
                f"{len(both)} of the items to add are in the catalog already, the first is {both[0]!r}.",
                mend="Give new items ids of their own, or leave these out.",
            )
        if other.media_root == self.media_root:
            images, audios = other.images, other.audios
        else:  # joining an absolute path to any root gives the absolute path
            images = [str(path.resolve()) if (path := other.image_path(i)) else None for i in range(len(other))]
            audios = [str(path.resolve()) if (path := other.audio_path(i)) else None for i in range(len(other))]
        return Catalog(
            self.item_ids + other.item_ids,
            self.titles + other.titles,
            self.texts + other.texts,
            self.images + images,
            self.audios + audios,
            self.metadata + other.metadata,
            self.media_root,
        )

    @staticmethod
    def load(directory: Path) -> Catalog:
        """Read what `ingest_catalog` wrote into `directory`. Raises `CatalogError` if there is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        directory = Path(directory)
        mend = "Run `mmrec ingest` to write the catalog."
        for name in ("items.parquet", "catalog.json"):
            if not (directory / name).is_file():
                raise CatalogError(f"No catalog in {directory}: {name} is missing.", mend=mend)
        try:
            root = Path(json.loads((directory / "catalog.json").read_text(encoding="utf-8"))["media_root"])
            table = pq.read_table(directory / "items.parquet")
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise CatalogError(f"The catalog in {directory} cannot be read: {error}", mend=mend) from error
        missing = set(SCHEMA) - set(table.column_names)
        if missing:
            raise CatalogError(f"{directory / 'items.parquet'} lacks the columns {sorted(missing)}.", mend=mend)
        columns: Mapping[str, list[Any]] = table.to_pydict()
        return Catalog(
            columns["item_id"],
            columns["title"],
            columns["text"],
            columns["image"],
            columns["audio"],
            [json.loads(row) for row in columns["metadata"]],
            (directory / root).resolve(),
        )


@dataclass(frozen=True)
class CatalogReport:
    """What an ingest kept and what it set aside; `reasons` counts the rows of `quarantine.parquet` by column."""

    items: int
    with_text: int
    with_image: int
    with_audio: int
    left_out: int  # items and rows that are not in the catalog at all
    reasons: dict[str, int]  # "image", "id", ... -> rows of quarantine.parquet
    examples: list[str]  # the first few quarantined, in words
    columns: dict[str, str]  # column of the source -> what it was read as
    notes: list[str]

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    def __str__(self) -> str:
        lines = [f"{self.items:,} items: {self.with_text:,} with words, {self.with_image:,} with a picture, "]
        lines[0] += f"{self.with_audio:,} with a sound."
        if self.quarantined:
            kinds = ", ".join(f"{n:,} {column}" for column, n in self.reasons.items())
            lines.append(f"{self.quarantined:,} quarantined ({kinds}); {self.left_out:,} items left out. The first:")
            lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines + self.notes)


@dataclass
class _Item:
    where: str
    item_id: str
    title: str
    text: str
    media: dict[str, str]  # "image", "audio" -> path relative to the media root
    metadata: dict[str, Any]


@dataclass
class _Quarantine:
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    left_out: int = 0

    def add(self, where: str, item_id: str, column: str, reason: str) -> None:
        self.rows.append((_clean(where), _clean(item_id[:1000]), column, _clean(reason)))


class _BadCell(ValueError):
    pass


def ingest_catalog(
    source: Path,
    destination: Path,
    *,
    media_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CatalogReport:
    """Read a catalog from `source` and write `items.parquet`, `quarantine.parquet` and `catalog.json` in `destination`.

    `source` is a folder of media (files of one stem are one item), a CSV, TSV, JSONL or Parquet table, a folder with
    such a table named `items.*` or `metadata.*`, a folder of Parquet files, or a folder written by `save_to_disk` of
    Hugging Face datasets. A table needs an id and may have a title, a text, an image and an audio (paths below
    `media_root`, by default the folder of the table; or the bytes themselves, which are written to
    `destination/media`); `columns` maps column names of one's own to `id`, `title`, `text`, `image` and `audio`. Every
    other column becomes metadata.

    Nothing bad in a row is fatal: an item keeps what is good about it, and `quarantine.parquet` (`source`, `item_id`,
    `column`, `reason`) tells the rest. Raises `CatalogError` if the source cannot be read, has no id column, or
    leaves no item at all.
    """
    opened = open_source(Path(source))
    names = _name_columns(opened, Path(source), columns or {})
    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    root = Path(media_root or opened.media_root).resolve()
    quarantine = _Quarantine()

    store = (destination / "media").resolve() if opened.embedded else None
    items = _read_items(opened, names, root, store, quarantine)
    _check_media(items, store or root, quarantine, progress)
    kept = []
    for item in items:
        if item.text or item.media or (item.title and not opened.is_folder):
            kept.append(item)
            if opened.is_folder:
                item.text = f"{item.text}\n{words_of(item.metadata.get('folder', ''))}".strip()
        else:
            quarantine.left_out += 1
            quarantine.add(item.where, item.item_id, "", "has no words, no readable picture and no readable sound")
    if not kept:
        first = "".join(f"\n  {_in_words(row)}" for row in quarantine.rows[:3])
        raise CatalogError(
            f"{source} holds no item that can be used; {len(quarantine.rows)} rows are bad.{first}",
            mend="Mend the rows named above and ingest again.",
        )
    _write(kept, quarantine, destination, "media" if store else str(root))
    return CatalogReport(
        items=len(kept),
        with_text=sum(bool(item.title or item.text) for item in kept),
        with_image=sum("image" in item.media for item in kept),
        with_audio=sum("audio" in item.media for item in kept),
        left_out=quarantine.left_out,
        reasons=dict(Counter(row[2] or "item" for row in quarantine.rows)),
        examples=[_in_words(row) for row in quarantine.rows[:5]],
        columns=names,
        notes=list(opened.notes),
    )


def _name_columns(opened: Source, source: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Which column of the source is read as what: what the caller says, then the known names in order."""
    found = ", ".join(opened.columns) or "none"
    for own, ours in given.items():
        if own not in opened.columns:
            raise CatalogError(f"{source} has no column {own!r}; it has: {found}.", mend="Name one of these columns.")
        if ours not in ALIASES:
            raise CatalogError(f"A column cannot be read as {ours!r}.", mend=f"Use one of: {', '.join(ALIASES)}.")
    names = dict(given)
    plain = {c: re.sub(r"[\s-]+", "_", c.strip().lower()) for c in opened.columns}
    for ours, aliases in ALIASES.items():
        if ours in names.values():
            continue
        matches = [c for alias in aliases for c in opened.columns if plain[c] == alias and c not in names]
        if matches:
            names[matches[0]] = ours
    if "id" not in names.values() and not opened.id_from_row:
        raise CatalogError(
            f"{source} has no column 'id'; it has: {found}.",
            mend="Rename the column that names the items to 'id', or say which it is: --column YOURS=id.",
        )
    return names


def _read_items(
    opened: Source, names: dict[str, str], root: Path, store: Path | None, quarantine: _Quarantine
) -> list[_Item]:
    items: list[_Item] = []
    first_at: dict[str, str] = {}
    for row in opened.rows:
        cells = {ours: row.values[own] for own, ours in names.items() if row.values.get(own) is not None}
        item_id, reason = _read_id(cells.get("id"))
        if opened.id_from_row and "id" not in names.values():
            item_id, reason = row.where.replace(" row ", "-"), ""
        if not row.reason and not reason and item_id in first_at:
            reason = f"is the id of {first_at[item_id]} already"
        if row.reason or reason:
            quarantine.left_out += 1
            quarantine.add(row.where, item_id, "" if row.reason else "id", row.reason or reason)
            continue
        first_at[item_id] = row.where
        item = _Item(row.where, item_id, "", "", {}, {})
        try:
            item.metadata = _read_metadata({c: v for c, v in row.values.items() if c not in names})
        except _BadCell as error:
            quarantine.add(row.where, item_id, "metadata", str(error))
        for column in ("title", "text"):
            try:
                words = _read_words(cells.get(column))
            except _BadCell as error:
                quarantine.add(row.where, item_id, column, str(error))
                continue
            if len(words) > MAX_TEXT:
                quarantine.add(row.where, item_id, column, f"was cut: the first {MAX_TEXT:,} characters are kept")
            setattr(item, column, words[:MAX_TEXT].strip())
        for column in ("image", "audio", "file"):
            if cells.get(column) in (None, ""):
                continue
            try:
                kind, path = _read_media(column, cells[column], root, store, len(items))
                item.media.setdefault(kind, path)
            except _BadCell as error:
                quarantine.add(row.where, item_id, column, str(error))
        items.append(item)
    return items


def _read_id(cell: Any) -> tuple[str, str]:
    """The id a cell gives, and why it cannot be used if it cannot."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    item_id = str(cell).strip() if isinstance(cell, str | int) and not isinstance(cell, bool) else ""
    if not item_id:
        return "", "is empty" if cell in (None, "") or isinstance(cell, str) else f"is a {type(cell).__name__}"
    if _clean(item_id) != item_id:
        return item_id, "is not valid Unicode"
    return item_id, f"is longer than 1,000 characters ({len(item_id):,})" if len(item_id) > 1000 else ""


def _read_words(cell: Any) -> str:
    if isinstance(cell, BadCell):
        raise _BadCell(cell.reason)
    if isinstance(cell, bytes):
        raise _BadCell("holds bytes where text should be")
    if isinstance(cell, list | tuple):
        return " ".join(_read_words(part) for part in cell)
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return _clean(str(cell)[: MAX_TEXT + 1])


def _read_metadata(cells: dict[str, Any]) -> dict[str, Any]:
    nested = cells.pop("metadata", None)
    if isinstance(nested, str) and nested.strip():
        try:
            nested = json.loads(nested)
        except (ValueError, RecursionError):
            nested = {"metadata": nested}
    if isinstance(nested, dict):
        cells |= nested
    elif nested not in (None, ""):
        cells["metadata"] = nested
    try:
        return {_clean(str(c)): value for c, cell in cells.items() if (value := _jsonable(cell)) is not None}
    except RecursionError as error:
        raise _BadCell("is nested too deeply") from error


def _jsonable(value: Any) -> Any:
    """What JSON can hold of a cell, None for what it cannot: bytes, NaN, nothing."""
    if isinstance(value, str):
        return _clean(value[:MAX_TEXT]) or None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean(str(k)): v for k, cell in value.items() if (v := _jsonable(cell)) is not None} or None
    if isinstance(value, list | tuple):
        return [v for cell in value if (v := _jsonable(cell)) is not None] or None
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    return None if value is None or isinstance(value, bytes) else _clean(str(value)[:MAX_TEXT])


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _embedded(cell: Any) -> Any:
    """The bytes in a cell of an image or audio column of Hugging Face datasets, or else the cell or its path."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return cell


def _read_media(column: str, cell: Any, root: Path, store: Path | None, number: int) -> tuple[str, str]:
    """Which medium a cell holds and its path relative to the media root, embedded bytes being written to `store`."""
    suffix = Path(str(cell.get("path") or "")).suffix.lower() if isinstance(cell, dict) else ""
    cell = _embedded(cell)
    if isinstance(cell, bytes):
        if store is None:
            raise _BadCell("holds bytes where a path should be")
        kind = "image" if column == "image" or (column == "file" and suffix in IMAGE_SUFFIXES) else "audio"
        name = f"{kind}/{number:07d}{suffix if suffix in IMAGE_SUFFIXES | AUDIO_SUFFIXES else _suffix(cell)}"
        (store / kind).mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(cell)
        return kind, name
    if not isinstance(cell, str):
        raise _BadCell(f"is a {type(cell).__name__} where a path should be")
    path = _inside(root, cell)
    suffix = path.suffix.lower()
    if column == "file" and suffix not in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
        raise _BadCell(f"{cell!r} is neither a picture nor a sound by its name")
    kind = column if column != "file" else "image" if suffix in IMAGE_SUFFIXES else "audio"
    if store is None:
        return kind, path.relative_to(root).as_posix()
    name = f"{kind}/{number:07d}{suffix}"
    (store / kind).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, store / name)
    return kind, name


_MAGIC = {
    b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif",
    b"OggS": ".ogg", b"fLaC": ".flac", b"ID3": ".mp3", b"\xff\xfb": ".mp3", b"FORM": ".aiff",
}  # fmt: skip


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF":
        return ".webp" if data[8:12] == b"WEBP" else ".wav"
    return next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), "")


def _inside(root: Path, name: str) -> Path:
    """The file that a path of the source means, every link followed, provided it lies in the media root."""
    shown = repr(name if len(name) < 200 else name[:200] + "...")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise _BadCell(f"{shown} is an address; download the file and give its path")
    try:
        path = (root / name.strip()).resolve()
        if not path.is_relative_to(root):
            raise _BadCell(f"{shown} leads out of the media root {root}")
        if not path.is_file():
            raise _BadCell(f"{shown} is not there" if not path.exists() else f"{shown} is not a file")
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, _BadCell):
            raise
        raise _BadCell(f"{shown} is not a path: {error}") from error
    return path


def _check_media(items: list[_Item], root: Path, quarantine: _Quarantine, progress: Progress | None) -> None:
    """Open every medium once; take what cannot be read off its item."""
    from encoders.media import MediaError, check_audio, check_image

    checks: dict[str, Callable[[Path], object]] = {"image": check_image, "audio": check_audio}

    def reason(job: tuple[_Item, str]) -> str:
        item, kind = job
        try:
            checks[kind](root / item.media[kind])
        except MediaError as error:
            return error.reason
        return ""

    jobs = [(item, kind) for item in items for kind in item.media]
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for done, ((item, kind), bad) in enumerate(zip(jobs, pool.map(reason, jobs), strict=True), 1):
            if bad:
                quarantine.add(item.where, item.item_id, kind, f"{item.media.pop(kind)}: {bad}")
            if progress and (done % 64 == 0 or done == len(jobs)):
                progress(done, len(jobs))


def _in_words(row: tuple[str, str, str, str]) -> str:
    where, item_id, column, reason = row
    return f"{where}{f' (item {item_id})' if item_id else ''}: {f'{column}: ' if column else ''}{reason}"


def _write(items: list[_Item], quarantine: _Quarantine, destination: Path, media_root: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [
        [item.item_id for item in items],
        [item.title for item in items],
        [item.text for item in items],
        [item.media.get("image") for item in items],
        [item.media.get("audio") for item in items],
        [json.dumps(item.metadata, ensure_ascii=False, allow_nan=False) for item in items],
    ]
    table = pa.table([pa.array(c, pa.string()) for c in columns], names=list(SCHEMA))
    bad = list(zip(*quarantine.rows, strict=True)) or [(), (), (), ()]
    quarantined = pa.table([pa.array(c, pa.string()) for c in bad], names=["source", "item_id", "column", "reason"])
    for name, written in (("items.parquet", table), ("quarantine.parquet", quarantined)):
        pq.write_table(written, destination / f".{name}")
        os.replace(destination / f".{name}", destination / name)
    scratch = destination / ".catalog.json"
    scratch.write_text(json.dumps({"media_root": media_root, "items": len(items)}) + "\n", encoding="utf-8")
    os.replace(scratch, destination / "catalog.json")
