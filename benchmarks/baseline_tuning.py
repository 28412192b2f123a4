"""The strongest baselines with the care our own model got: options tried on Amazon Beauty's validation, one seed.

    python -m benchmarks.baseline_tuning --record docs/results

The test events are not looked at. A row changes the options named from those our retriever has in the recipe; the
epoch is the best of its schedule, as in the tables. The winners stand in recipes/amazon_*.yaml under
`evaluation.baselines`. Finished rows are kept in --work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import record
from mmrec import results, stages
from mmrec.config import Recipe
from mmrec.progress import progress
from mmrec.workspace import Workspace, write_text
from retrieval.baselines import make_baseline
from retrieval.model import RetrieverConfig
from retrieval.ranking import recall_and_ndcg

TRIES: dict[str, dict[str, dict[str, Any]]] = {
    "sasrec": {
        "as ours": {},
        "20 epochs": {"epochs": 20},
        "20 epochs, dropout .5": {"epochs": 20, "dropout": 0.5},
        "20 epochs, one block of 256": {"epochs": 20, "blocks": 1, "dim": 256},
        "30 epochs, dropout .5": {"epochs": 30, "dropout": 0.5},
    },
    "hstu": {"20 epochs, dropout .5": {"epochs": 20, "dropout": 0.5}},
    "sasrec_bce": {"40 epochs, dropout .5": {"epochs": 40, "dropout": 0.5}},
    "bert4rec": {"60 epochs": {"epochs": 60, "patience": 60}},
}
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/baseline-tuning"), help="where rows are kept")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    recipe = Recipe.load(Path("recipes/amazon_beauty.yaml"))
    space = Workspace(options.work / "amazon_beauty")
    stages.ingest(space, recipe)
    catalog, _, split = stages.load_split(space, recipe)
    histories, targets = stages.validation_of(split)
    vectors = np.empty((len(catalog), 0), np.float32)  # these models know items by id alone
    file = options.work / "measured.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    made = []
    for model, tries in TRIES.items():
        for tried, changed in tries.items():
            name = f"{model}, {tried}"
            if name not in rows:
                config = stages.configure(RetrieverConfig, recipe.retriever | changed, name)
                folder = options.work / name.replace(" ", "-")
                with progress(f"training {name}", unit="epochs") as tick:
                    baseline: Any = make_baseline(
                        model, config=config, validation=(histories, targets), checkpoint_dir=folder, progress=tick
                    )
                    baseline.fit(split.train.items, split.train.preferences, vectors, SEED)
                recall, ndcg = recall_and_ndcg(baseline.recommend(histories, 10)[0], targets)
                rows[name] = {"recall@10": recall, "ndcg@10": ndcg, "best epoch": baseline.chosen.stop_after}
                write_text(file, json.dumps(rows, indent=1))
            print(name, rows[name], flush=True)
            command = "python -m benchmarks.baseline_tuning --record docs/results"
            made += [
                record("Amazon Beauty", "strict-validation", f"tuning {name}", metric, [value], [SEED], command)
                for metric, value in rows[name].items()
            ]
    if options.record:
        print(results.write_records("baseline-tuning", made, options.record))


if __name__ == "__main__":
    main()
