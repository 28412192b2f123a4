"""Items with one modality, and what is learnt while some of them are held out; for the round trips of the decoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders.bridge import Bridge
from encoders.fusion import Fusion, FusionConfig
from mmrec import results
from mmrec.catalog import Catalog
from mmrec.config import Recipe
from mmrec.stages import load_embeddings, load_split, used_together, wanted_only
from mmrec.workspace import Workspace


@dataclass
class Items:
    """The items that have a modality: row i is item `rows[i]` of the catalog."""

    workspace: Workspace
    catalog: Catalog
    rows: np.ndarray
    embeddings: np.ndarray  # [n, d]
    space: dict[str, str]

    @staticmethod
    def of(workspace: Workspace, modality: str) -> Items:
        data, catalog = load_embeddings(workspace), Catalog.load(workspace.require("catalog").path)
        rows = np.flatnonzero(data.present[modality])
        return Items(workspace, catalog, rows, data.vectors[modality][rows], data.spaces[modality])

    def told(self, name: str) -> np.ndarray:
        """What the metadata say of each, "" where they say nothing."""
        return np.array([self.catalog.metadata[int(row)].get(name, "") for row in self.rows])

    def learnt_without(self, held: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, Bridge]:
        """Item vectors of all [n, D] from a fusion that has never met the held-out ones, and its bridge."""
        recipe = Recipe.load(self.workspace.root / "recipe.yaml")
        data = load_embeddings(self.workspace)
        known = np.ones(len(self.catalog), bool)
        known[self.rows[held]] = False
        place = np.where(known, np.cumsum(known) - 1, -1)  # row among the known
        train = load_split(self.workspace, recipe)[2].train
        met = [place[items] for items in wanted_only(train.items, train.preferences)]
        fusion = Fusion.fit(
            {name: vectors[known] for name, vectors in data.vectors.items()},
            {name: present[known] for name, present in data.present.items()},
            used_together([items[items >= 0] for items in met]),
            FusionConfig(**recipe.fusion),
            recipe.seed,
        )
        vectors = fusion.transform(data.vectors, data.present)[self.rows]
        return vectors, Bridge.fit(self.embeddings[kept], vectors[kept], recipe.seed)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def report(
    found: dict[tuple[str, str, str], list[float]],
    dataset: str,
    name: str,
    command: str,
    seeds: tuple[int, ...],
    folder: Path | None,
) -> None:
    """Print (split, model, metric) -> one value a seed, and write them as records."""
    for key, values in found.items():
        print(f"{', '.join(key)}: {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} over seeds {seeds}")
    if folder is None:
        return
    records = [
        results.Record(
            dataset=dataset,
            split=split,
            model=model,
            metric=metric,
            mean=float(np.mean(values)),
            std=float(np.std(values, ddof=1)),
            seeds=seeds,
            command=command,
            commit=results.commit(),
            machine=results.machine(),
        )
        for (split, model, metric), values in found.items()
    ]
    print(results.write_records(name, records, folder))
