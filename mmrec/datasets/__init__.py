"""Datasets by name: each is prepared into a catalog and a log that are then ingested like anyone's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrec.datasets.files import DatasetFiles, Progress
from mmrec.errors import DatasetMissing

__all__ = ["DATASETS", "DatasetFiles", "prepare"]

DATASETS = {
    "demo": "pictures and music out of packages, simulated people",
    "ml100k": "MovieLens 100K: real people, titles and genres",
    "movielens_posters": "MovieLens with posters: real people, real pictures (brought along)",
    "amazon_beauty": "Amazon 2014 Beauty, 5-core: titles and categories (brought along)",
    "amazon_sports": "Amazon 2014 Sports and Outdoors, 5-core (brought along)",
    "emotify": "400 clips of music, liked and disliked by groups of listeners (brought along)",
    "oasis_beauty": "photographs that 757 people rated for beauty (brought along)",
}


def prepare(name: str, destination: Path, *, progress: Progress | None = None, **options: Any) -> DatasetFiles:
    """Prepare the dataset `name` of `DATASETS` in `destination`.

    Options: demo takes `seed`, `pictures`, `music`, `seconds`, `users`, `size`; ml100k takes `source` and `cache`;
    movielens_posters takes `data` and `ratings`, oasis_beauty `data` and `pictures_only`; the others take `data`. Where
    `data` is not given, the folder in the environment variable MMREC_DATA is used. Raises `DatasetMissing` for an
    unknown name or absent files.
    """
    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    if name == "demo":
        from mmrec.datasets.demo import build_demo

        return build_demo(destination, progress=progress, **options)
    if name == "ml100k":
        from mmrec.datasets.movielens import ml100k

        return ml100k(options.pop("source", None), destination, progress, **options)
    data = options.pop("data", None)
    if name == "movielens_posters":
        from mmrec.datasets.movielens import movielens_posters

        return movielens_posters(data, destination, progress=progress, **options)
    if name in ("amazon_beauty", "amazon_sports"):
        from mmrec.datasets.amazon import amazon_p5

        title = "Beauty" if name == "amazon_beauty" else "Sports_and_Outdoors"
        return amazon_p5(data, destination, title, progress, **options)
    if name == "emotify":
        from mmrec.datasets.emotify import emotify

        return emotify(data, destination, progress, **options)
    if name == "oasis_beauty":
        from mmrec.datasets.oasis import oasis_beauty

        return oasis_beauty(data, destination, progress, **options)
    raise DatasetMissing(f"There is no dataset {name!r}.", mend=f"Use one of: {', '.join(DATASETS)}.")
