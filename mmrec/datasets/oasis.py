"""OASIS beauty (Brielmann & Pelli 2019): photographs that 757 people rated for beauty, each from 1 to 7."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmrec.datasets.files import DatasetFiles, Progress, data_folder, required, write_sources


def oasis_beauty(
    data: Path | None, destination: Path, progress: Progress | None = None, pictures_only: bool = True
) -> DatasetFiles:
    """The 152 photographs whose pixels are there, or with `pictures_only` false all 900, known by their words alone.

    Each person rated 225 of the 900, drawn at random, so what is rated says nothing about what is liked. The log has no
    times. The mean beauty that comes with the data is left out: it is made of the very ratings that are asked for.
    `data` is the folder `oasis_beauty` or the one that holds it. Raises `DatasetMissing`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    folder = data_folder(data, "oasis_beauty")
    photographs = pd.read_parquet(required(folder, "items.parquet"))
    ratings = pd.read_parquet(required(folder, "ratings.parquet"))
    if pictures_only:
        photographs = photographs[photographs["has_image"]]
        ratings = ratings[ratings["item"].isin(photographs["item"])]
    pictures = pq.ParquetFile(required(folder, "images.parquet"))
    (destination / "photographs").mkdir(parents=True, exist_ok=True)
    image = {}
    for batch in pictures.iter_batches(batch_size=64, columns=["item", "jpeg"]):
        for row in batch.to_pylist():
            name, scratch = f"photographs/{row['item']}.jpg", destination / "photographs" / ".part"
            scratch.write_bytes(row["jpeg"])
            os.replace(scratch, destination / name)
            image[row["item"]] = name
        if progress:
            progress(len(image), pictures.metadata.num_rows)
    items = [
        {
            "item_id": str(row["item"]),
            "title": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", row["theme"].strip()),
            "text": row["category"],
            "metadata": {"group": row["category"]},
            **({"image": image[row["item"]]} if row["item"] in image else {}),
        }
        for row in photographs.to_dict("records")
    ]
    return write_sources(destination, items, ratings.set_axis(["user", "item", "rating"], axis=1))
