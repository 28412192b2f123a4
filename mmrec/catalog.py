"""The catalog: what there is to recommend, as `items.parquet` beside `catalog.json` on disk and `Catalog` in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmrec.errors import CatalogError


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
        import pyarrow.parquet as pq

        directory = Path(directory)
        mend = "Run `mmrec ingest` to write the catalog."
        for name in ("items.parquet", "catalog.json"):
            if not (directory / name).is_file():
                raise CatalogError(f"No catalog in {directory}: {name} is missing.", mend=mend)
        root = Path(json.loads((directory / "catalog.json").read_text(encoding="utf-8"))["media_root"])
        table = pq.read_table(directory / "items.parquet")
        missing = {"item_id", "title", "text", "image", "audio", "metadata"} - set(table.column_names)
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
