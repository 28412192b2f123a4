"""What posters add over ids and words: the same retriever on MovieLens 1M, told more and more of its films.

    python -m benchmarks.ml1m_posters --record docs/results

The log has no times, so a person's likes are a set: at most `LIKES` of them are drawn, one to choose by, one to test
on, the others read in an order drawn once. The dense head ranks the whole catalog. Films are known by id alone
(SASRec), by words (title and genres), by posters, or by both; *rare* is the quarter of the test likes whose films
fewest people like. Data below MMREC_DATA; what is finished is kept in --work, which the proof of the prior shares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.prior.people import build
from benchmarks.timing import record
from encoders.fusion import Fusion, FusionConfig
from mmrec import results, stages
from mmrec.catalog import Catalog
from mmrec.interactions import load_histories
from mmrec.progress import progress
from retrieval.model import RetrieverConfig
from retrieval.ranking import recall_and_ndcg
from retrieval.retriever import Retriever
from retrieval.training import train_retriever

KNOWN: dict[str, tuple[str, ...]] = {
    "ids alone": (),
    "words": ("text",),
    "posters": ("image",),
    "words and posters": ("text", "image"),
}
LIKES, FEWEST, K = 50, 10, 10
CONFIG = RetrieverConfig(
    epochs=12, patience=12, batch_size=64, learning_rate=2e-3, full_softmax_up_to=10_000, queries=0.0
)


class Data:
    """Sets of likes: `train` of each person, one like to choose by and one to test on."""

    def __init__(self, work: Path) -> None:
        space = build("ml1m_posters", work)
        catalog = Catalog.load(space.require("catalog").path)
        everyone = load_histories(space.require("interactions").path, catalog.index)
        self.items, self.embeddings = len(catalog), stages.load_embeddings(space)
        rng = np.random.default_rng(0)
        drawn = [rng.permutation(h[p > 0])[:LIKES] for h, p in zip(everyone.items, everyone.preferences, strict=True)]
        drawn = [likes for likes in drawn if len(likes) >= FEWEST]
        self.train = [likes[:-2] for likes in drawn]
        self.valid, self.test = (np.array([likes[place] for likes in drawn]) for place in (-2, -1))
        often = np.bincount(np.concatenate(self.train), minlength=self.items)
        self.rare = often[self.test] <= np.quantile(often[self.test], 0.25)

    def vectors(self, modalities: tuple[str, ...]) -> np.ndarray | None:
        if not modalities:
            return None
        media = {name: self.embeddings.vectors[name] for name in modalities}
        present = {name: self.embeddings.present[name] for name in modalities}
        nothing, first = ~np.any(list(present.values()), axis=0), modalities[0]
        mean = media[first][present[first]].mean(axis=0)  # stands for the few films of which nothing else is known
        media[first] = np.where(nothing[:, None], mean, media[first]).astype(np.float32)
        present[first] = present[first] | nothing
        pairs = stages.used_together(self.train)
        return Fusion.fit(media, present, pairs, FusionConfig(dim=128), 0).transform(media, present)


def ask(data: Data, name: str, seed: int, work: Path) -> dict[str, float]:
    folder = work / f"{name.replace(' ', '-')}-{seed}"
    if not (folder / "config.json").is_file():
        with progress(f"training, {name}, seed {seed}", unit="epochs") as tick:
            train_retriever(
                data.train, data.vectors(KNOWN[name]), None, CONFIG, validation=(data.train, data.valid), seed=seed,
                items=data.items, checkpoint_dir=folder / "checkpoints", progress=tick,
            ).save_pretrained(folder)  # fmt: skip
    met = [np.append(likes, one) for likes, one in zip(data.train, data.valid, strict=True)]
    lists, _ = Retriever.from_pretrained(folder).recommend(met, K, mode="dense")
    recall, ndcg = recall_and_ndcg(lists, data.test)
    rare, _ = recall_and_ndcg(lists[data.rare], data.test[data.rare])
    return {f"recall@{K}": recall, f"ndcg@{K}": ndcg, "recall@10 of rare likes": rare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/proof"), help="where finished models are kept")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    data, seeds = Data(options.work), [int(seed) for seed in options.seeds.split(",")]
    made = []
    for name in KNOWN:
        told = []
        for seed in seeds:
            told.append(ask(data, name, seed, options.work / "models" / "what-posters-add"))
            print(f"{name}, seed {seed}: {told[-1]}", flush=True)
        command = f"python -m benchmarks.ml1m_posters --seeds {options.seeds} --record docs/results"
        for metric in told[0]:
            values = [of[metric] for of in told]
            made.append(
                record("ml1m_posters", "drawn-like-test", f"retriever (dense), {name}", metric, values, seeds, command)
            )
    if options.record:
        print(results.write_records("ml1m_posters", made, options.record))


if __name__ == "__main__":
    main()
