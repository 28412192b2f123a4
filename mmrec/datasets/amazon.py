"""Amazon reviews 2014, 5-core, in the order and with the ids that the papers on generative retrieval use (S3-Rec's)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from mmrec.datasets.files import DatasetFiles, Progress, data_folder, required, write_sources

NAMES = ("Beauty", "Sports_and_Outdoors")


def amazon_p5(
    data: Path | None, destination: Path, name: str = "Beauty", progress: Progress | None = None
) -> DatasetFiles:
    """Items with title and categories (Beauty) or the words of their text id (Sports), people with their sequences.

    Both have tags: the attributes of S3-Rec (Zhou et al. 2020), which are categories and brands as numbers.

    The log has no times: events stand in the order of the file, which within one day is not the order of real time.
    Text that other models wrote with the interactions at hand (keywords, semantic ids) is left out, so that content
    stays content. `data` is the folder `amazon_p5` or the one that holds it. Raises `DatasetMissing`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    if name not in NAMES:
        raise ValueError(f"name is one of {', '.join(NAMES)}, not {name!r}.")
    folder = data_folder(data, "amazon_p5")
    rows = pq.read_table(required(folder, f"{name}.items.parquet")).to_pylist()
    items = []
    for row in rows:
        tags = [f"attribute {number}" for number in row["s3rec_attribute_ids"] or ()]
        metadata: dict[str, Any] = {"asin": row["asin"], "tags": tags}
        if "title" in row:
            categories = [part.strip() for part in (row["categories"] or "").split(">") if part.strip()]
            title, text = row["title"] or "", ", ".join(categories)
            metadata |= {
                "group": categories[1] if len(categories) > 1 else name,
                "subgroup": categories[-1] if categories else "",
            }
        else:
            title, text = row["idgenrec_text_id"] or "", ""
        items.append({"item_id": str(row["item_id"]), "title": title, "text": text, "metadata": metadata})

    with gzip.open(required(folder, f"{name}.sequences.txt.gz"), "rt", encoding="ascii") as lines:
        sequences = [line.split() for line in lines]
    log = pd.DataFrame(
        {
            "user": [sequence[0] for sequence in sequences for _ in sequence[1:]],
            "item": [item for sequence in sequences for item in sequence[1:]],
        }
    )
    return write_sources(destination, items, log)
