"""SASRec with the care our own model got: its options tried on Amazon Beauty's validation events, one seed.

    python -m benchmarks.sasrec_tuning --record docs/results

The test events are not looked at. A row changes the options named from those our retriever has in the recipe; the
epoch is the best of its schedule, as in the tables. The winner stands in recipes/amazon_*.yaml under
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
from retrieval.baselines.sasrec import SASRec
from retrieval.model import RetrieverConfig
from retrieval.ranking import recall_and_ndcg

TRIES: dict[str, dict[str, Any]] = {
    "as ours": {},
    "20 epochs": {"epochs": 20},
    "40 epochs": {"epochs": 40},
    "dropout .5": {"dropout": 0.5},
    "dropout .5, 20 epochs": {"dropout": 0.5, "epochs": 20},
    "dropout .1": {"dropout": 0.1},
    "learning rate .001, 20 epochs": {"learning_rate": 1e-3, "epochs": 20},
    "learning rate .004": {"learning_rate": 4e-3},
    "weight decay .2": {"weight_decay": 0.2},
    "1 block of 256": {"dim": 256, "blocks": 1},
    "1 block of 128": {"blocks": 1},
    "4,096 negatives": {"negatives": 4096},
}
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/sasrec-tuning"), help="where rows are kept")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    recipe = Recipe.load(Path("recipes/amazon_beauty.yaml"))
    space = Workspace(options.work / "amazon_beauty")
    stages.ingest(space, recipe)
    catalog, _, split = stages.load_split(space, recipe)
    histories, targets = stages.validation_of(split)
    file = options.work / "measured.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, changed in TRIES.items():
        if name not in rows:
            config = stages.configure(RetrieverConfig, recipe.retriever | changed, "sasrec")
            folder = options.work / name.replace(" ", "-")
            with progress(f"training SASRec, {name}", unit="epochs") as tick:
                model = SASRec(config, validation=(histories, targets), checkpoint_dir=folder, progress=tick)
                model.fit(split.train.items, split.train.preferences, np.empty((len(catalog), 0), np.float32), SEED)
            recall, ndcg = recall_and_ndcg(model.recommend(histories, 10)[0], targets)
            rows[name] = {"recall@10": recall, "ndcg@10": ndcg, "epochs to the best": model.chosen.stop_after}
            write_text(file, json.dumps(rows, indent=1))
        print(name, rows[name], flush=True)
    if options.record:
        command = "python -m benchmarks.sasrec_tuning --record docs/results"
        made = [
            record("Amazon Beauty", "strict-validation", f"SASRec, {name}", metric, [value], [SEED], command)
            for name in TRIES
            for metric, value in rows[name].items()
        ]
        print(results.write_records("sasrec-tuning", made, options.record))


if __name__ == "__main__":
    main()
