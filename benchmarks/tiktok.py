"""TikTok micro-videos: pictures and sounds, fused; against the published table of multimodal recommenders.

The split of DiffMM (Jiang et al. 2024, "DiffMM: Multi-Modal Diffusion Model for Recommendation", section 4.1): sets of
items without order, one item of a person to choose by and one to test on; recall@20 and NDCG@20 over all items that the
person has not met. The published multimodal rows also had the words, which are missing here.

A sequence model reads what has no order in an order drawn anew for each of `ORDERS` copies of a person, so that it
learns to rely on none. Choices (epochs, the weight of the codes) are made on the validation items, by NDCG@20 as the
table's, out of the whole schedule: in so small a set an early epoch may look best for a while. The dropout is the best
of .3, .5 and .6 there, over three seeds. Run `python -m benchmarks.tiktok --record
docs/results` with the data below MMREC_DATA; finished seeds are kept.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.timing import record
from encoders.fusion import Fusion, FusionConfig
from mmrec import results
from mmrec.progress import progress
from mmrec.stages import used_together
from retrieval.baselines import make_baseline
from retrieval.index import unit
from retrieval.model import RetrieverConfig
from retrieval.ranking import recall_and_ndcg
from retrieval.retriever import Retriever
from retrieval.semantic_ids import assign_unique, make_tokenizer
from retrieval.training import train_retriever

DATASET = "tiktok_mm"
ORDERS = 3
K = 20
CONFIG = RetrieverConfig(
    epochs=12, patience=12, choose_at=K, dropout=0.6, code_epochs=3, batch_size=128, learning_rate=2e-3,
    full_softmax_up_to=10_000, queries=0.0,
)  # fmt: skip
MEDIA = ("image", "audio")
PARTS: dict[str, tuple[str, ...]] = {"images alone": ("image",), "sounds alone": ("audio",), "ids alone": ()}
BASELINES: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item_knn": {"decay": 1.0, "shrink": 10.0, "discount": 0.0, "neighbours": 1_000},
}
"""item_knn's options are the best of a few on the validation items."""


class Data:
    """Sets of items per person, and what pictures and sounds say of each item."""

    def __init__(self, folder: Path) -> None:
        log = pd.read_parquet(folder / "interactions.parquet")
        self.media = {
            modality: unit(np.load(folder / f"{modality}_feat.npy", allow_pickle=False)) for modality in MEDIA
        }
        self.items = len(self.media["image"])
        people = int(log["user"].max()) + 1
        self.train, self.valid, self.test = (
            sets(log[log["split"] == part], people) for part in ("train", "valid", "test")
        )

    def vectors(self, modalities: tuple[str, ...]) -> np.ndarray:
        """Unit vectors of the items, float32 [N, D], fused of so many modalities and of who used what together."""
        media = {modality: self.media[modality] for modality in modalities}
        present = {modality: x.any(axis=1) for modality, x in media.items()}
        pairs = used_together(self.train, window=50)
        config = FusionConfig(dim=128, modality_dim=128, use_dim=64)
        return Fusion.fit(media, present, pairs, config, 0).transform(media, present)


def sets(log: pd.DataFrame, people: int) -> list[np.ndarray]:
    by = log.groupby("user")["item"].apply(lambda items: items.to_numpy(np.int64))
    return [by.get(person, np.zeros(0, np.int64)) for person in range(people)]


def train(data: Data, modalities: tuple[str, ...], seed: int, folder: Path) -> Retriever:
    if not (folder / "config.json").is_file():
        rng = np.random.default_rng(seed)
        histories = [rng.permutation(items) for items in data.train if len(items) > 1 for _ in range(ORDERS)]
        vectors, ids = None, None
        if modalities:
            vectors = data.vectors(modalities)
            tokenizer = make_tokenizer("residual_kmeans")
            ids = assign_unique(tokenizer.fit(vectors, seed), vectors, tokenizer, seed=seed)
        asked = [person for person, items in enumerate(data.valid) if len(items)]
        validation = [data.train[person] for person in asked], np.array([data.valid[person][0] for person in asked])
        with progress(f"training {folder.name}", unit="epochs") as tick:
            retriever = train_retriever(
                histories, vectors, ids, CONFIG, validation=validation, seed=seed, items=data.items,
                checkpoint_dir=folder / "checkpoints", progress=tick,
            )  # fmt: skip
        retriever.save_pretrained(folder)
    return Retriever.from_pretrained(folder)


def ask(data: Data, recommend: Any) -> dict[str, float]:
    """recall@20 and NDCG@20 of the test items, one of each person; the training items are hidden, as in the table."""
    people = [person for person, items in enumerate(data.test) if len(items)]
    shown, _ = recommend([data.train[person] for person in people], K)
    recall, ndcg = recall_and_ndcg(shown, np.array([data.test[person][0] for person in people]))
    return {f"recall@{K}": recall, f"ndcg@{K}": ndcg}


def rows(data: Data, seed: int, work: Path, with_baselines: bool) -> dict[str, dict[str, float]]:
    """The rows of one seed; the baselines have none."""
    ours = train(data, MEDIA, seed, work / f"image-audio-{seed}")
    table = {
        f"retriever ({mode})": ask(data, partial(ours.recommend, mode=mode)) for mode in ("fused", "dense", "codes")
    }
    for name, modalities in PARTS.items():
        less = train(data, modalities, seed, work / f"{'-'.join(modalities) or 'ids'}-{seed}")
        table[f"retriever (dense), {name}"] = ask(data, partial(less.recommend, mode="dense"))
    for name, options in BASELINES.items() if with_baselines else ():
        baseline = make_baseline(name, **options)
        baseline.fit(data.train, None, data.vectors(MEDIA), seed)
        table[name] = ask(data, baseline.recommend)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MMREC_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("workspaces/tiktok"), help="where finished models are kept")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between; the baselines have none")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    data = Data(options.data / DATASET)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    measured: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for name, numbers in rows(data, seed, options.work, with_baselines=seed == seeds[0]).items():
            measured.setdefault(name, []).append(numbers)
            print(f"seed {seed}, {name}: {numbers}", flush=True)
    if options.record:
        command = f"python -m benchmarks.tiktok --seeds {options.seeds} --record docs/results"
        records = [
            record(DATASET, "strict-test", name, metric, [of[metric] for of in several], seeds[: len(several)], command)
            for name, several in measured.items()
            for metric in several[0]
        ]
        print(results.write_records("tiktok", records, options.record))


if __name__ == "__main__":
    main()
