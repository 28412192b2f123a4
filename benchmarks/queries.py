"""Queries that are not histories: words go in, item IDs come out of the decoder that spells the next item.

    python -m benchmarks.queries -w workspaces/demo --record docs/results

Everybody of the validation part is asked for the item they took next, with and without being told in words what it is
(its own words through the bridge, as `mmrec recommend --text` sends them), and with and without their history. Beside
the model that hears the words stand what does without: the nearest vectors, and words that only weigh the list of the
history again (standardised scores added one to one, as the facade does for a model that hears nothing). Models of
further seeds are trained on the workspace's own vectors and semantic IDs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.timing import record
from mmrec import results
from mmrec.config import Recipe
from mmrec.stages import bridged, configure, fit_retriever, load_split, load_vectors, validation_of
from mmrec.workspace import Workspace
from retrieval.index import VectorIndex
from retrieval.model import RetrieverConfig
from retrieval.ranking import rank, recall_and_ndcg

K, CANDIDATES = 10, 200


def measure(space: Workspace, recipe: Recipe, seed: int) -> dict[str, tuple[float, float]]:
    split = load_split(space, recipe)[2]
    histories, targets = validation_of(split)
    words, vectors = bridged(space)["text"], load_vectors(space)
    told = np.isfinite(words[targets]).all(axis=1)
    histories, targets = [h for h, yes in zip(histories, told, strict=True) if yes], targets[told]
    about, nobody = words[targets], [np.empty(0, np.int64)] * len(targets)
    config = configure(RetrieverConfig, recipe.retriever, "retriever")
    work = space.root / ".queries" / f"seed-{seed}"
    hears = fit_retriever(space, recipe, split, seed, work / "hears", config)
    deaf = fit_retriever(space, recipe, split, seed, work / "deaf", replace(config, queries=0.0))

    def weighed(items: np.ndarray, scores: np.ndarray) -> np.ndarray:
        _, near = VectorIndex.load(space.require("index").path).search(about, CANDIDATES)
        lists = np.full((len(targets), K), -1)
        for row, history in enumerate(histories):
            found = np.setdiff1d(np.union1d(items[row], near[row]), [-1, *history])
            known = dict(zip(items[row].tolist(), scores[row].tolist(), strict=True))
            least = scores[row][items[row] >= 0].min()
            said = vectors[found] @ about[row]
            likely = np.array([known.get(int(item), least) for item in found])
            total = sum((part - part.mean()) / (part.std() + 1e-9) for part in (said, likely))
            lists[row] = found[np.argsort(-total, kind="stable")[:K]]
        return lists

    answers = {
        "history alone, model without queries": deaf.recommend(histories, K)[0],
        "history alone": hears.recommend(histories, K)[0],
        "words alone, nearest vectors": rank(about @ vectors.T, K)[0],
        "words alone, semantic IDs": hears.recommend(nobody, K, mode="codes", about=about)[0],
        "words alone, both heads": hears.recommend(nobody, K, about=about)[0],
        "history, then weighed by words": weighed(*deaf.recommend(histories, CANDIDATES)),
        "history and words, semantic IDs": hears.recommend(histories, K, mode="codes", about=about)[0],
        "history and words, both heads": hears.recommend(histories, K, about=about)[0],
        "history and words, then weighed by words": weighed(*hears.recommend(histories, CANDIDATES, about=about)),
    }
    return {name: recall_and_ndcg(items, targets) for name, items in answers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    space = Workspace(options.workspace)
    recipe = Recipe.load(space.root / "recipe.yaml")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs = [measure(space, recipe, seed) for seed in seeds]
    command = f"python -m benchmarks.queries -w workspaces/{recipe.name} --seeds {options.seeds} --record docs/results"
    dataset = f"queries in words, {recipe.name}" + (" (simulated people)" if recipe.source.simulated else "")
    records = []
    for name in runs[0]:
        for place, metric in enumerate(("recall@10", "ndcg@10")):
            values = [run[name][place] for run in runs]
            print(f"{name}: {metric} {np.mean(values):.4f}", flush=True)
            records.append(record(dataset, "validation", name, metric, values, seeds, command))
    if options.record:
        print(results.write_records(f"queries-{recipe.name}", records, options.record))


if __name__ == "__main__":
    main()
