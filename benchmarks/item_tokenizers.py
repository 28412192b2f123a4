"""Every item tokenizer on the same catalog: what its codes are like, and what the same retriever makes of them.

    python benchmarks/item_tokenizers.py --record docs/results               # the codes: minutes per tokenizer
    python benchmarks/item_tokenizers.py --record docs/results --epochs 3    # and the retriever, trained for each

Amazon Beauty, strict protocol: histories are the training part, the validation item of each person is what is asked
for, the test item is never looked at. Items are MiniLM vectors of title and categories, fused without looking at who
used what. Everything finished is kept in --work and skipped the next time (--again NAME forgets a tokenizer).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrec import results, stages
from mmrec.config import Recipe, Source
from mmrec.progress import progress
from mmrec.workspace import CHECKPOINTS, Workspace, write_text
from retrieval.ranking import recall_and_ndcg
from retrieval.semantic_ids import Context, SemanticIds, assign_unique, diagnostics, make_tokenizer, tokenizer_names

DATASET = "Amazon Beauty"
MODES = {"dense": "dense head", "codes": "codes alone", "fused": "both fused"}
UNITS = {
    "fit_cpu_seconds": "of one thread, without assigning the last level",
    "levels": "without the one that makes IDs unique",
    "codes_per_level": "of the largest level",
    "use": "share of a level's codes that some item has, mean over levels",
    "entropy_bits": "of the codes, sum over levels",
    "evenness": "entropy over that of an even use of all codes, mean over levels",
    "reconstruction_error": "share of the variance that the codes lose",
    "reconstruction_error_full": "and with the level that makes IDs unique",
    "collisions_before": "share of items that share all codes with another",
    "largest_group": "most items on the same codes",
    "moved": "items that had to change codes for want of room",
    "collisions": "share of items without an ID of their own, in the end",
    "category_purity": "share of items whose category is the commonest under their first code",
    "category_information": "adjusted mutual information of first code and category: 0 is chance, whatever the sizes",
    "next_code_lift": "how much likelier than by chance the validation item has the first code of the item before it",
}


@dataclass(frozen=True)
class Data:
    vectors: np.ndarray  # float32 [N, D]
    context: Context
    categories: np.ndarray  # [N] of str
    validation: tuple[list[np.ndarray], np.ndarray]


def load(data: Path, work: Path) -> Data:
    """Through mmrec's own reader, ingest and split; the vectors of the two texts are computed once."""
    from encoders.fusion import Fusion
    from encoders.registry import load_encoder

    recipe = Recipe(source=Source(dataset="amazon_beauty", options={"data": str(data)}))
    workspace = Workspace(work / "workspace")
    stages.ingest(workspace, recipe)
    catalog, _, split = stages.load_split(workspace, recipe)
    texts = {"title": catalog.titles, "categories": catalog.texts}
    embeddings = {}
    for name, lines in texts.items():
        file = work / f"{name}.npy"
        if not file.is_file():
            encoder = load_encoder("minilm", "cpu")
            distinct = sorted(set(lines), key=lambda line: (len(line), line))
            parts = []
            with progress(f"encoding {name}") as tick:
                for start in range(0, len(distinct), 256):
                    parts.append(encoder.encode(distinct[start : start + 256], "text"))
                    tick(min(start + 256, len(distinct)), len(distinct))
            place = {line: row for row, line in enumerate(distinct)}
            np.save(work / f".{name}.npy", np.concatenate(parts)[[place[line] for line in lines]])
            os.replace(work / f".{name}.npy", file)
        embeddings[name] = np.load(file, allow_pickle=False) * np.array([[bool(line)] for line in lines])
    present = {name: x.any(axis=1) for name, x in embeddings.items()}
    vectors = Fusion.fit(embeddings, present).transform(embeddings, present)
    histories = stages.wanted_only(split.train.items, split.train.preferences)
    groups = np.array([item.get("group", "") for item in catalog.metadata])
    return Data(vectors, Context(histories, embeddings), groups, stages.validation_of(split))


def codes_row(name: str, data: Data, work: Path, seed: int) -> dict[str, float]:
    """Fit, assign and describe one tokenizer; its IDs are left in `work`."""
    from sklearn.metrics import adjusted_mutual_info_score

    tokenizer = make_tokenizer(name)
    with progress(f"fitting {name}", unit="steps") as tick:
        started = time.process_time()
        codes = tokenizer.fit(data.vectors, seed, data.context, checkpoint_dir=work / CHECKPOINTS, progress=tick)
        seconds = time.process_time() - started
    ids = assign_unique(codes, data.vectors, tokenizer, seed=seed)
    ids.save(work / "ids")
    report = diagnostics(ids, tokenizer, data.vectors)
    bits, most = np.array(report["entropy"][:-1]), np.log2(np.maximum(ids.sizes[:-1], 2))
    first = ids.codes[:, int(np.argmax(bits > 0))]  # decoupled codes start with one that is the same for all here
    row = {
        "fit_cpu_seconds": seconds,
        "levels": len(bits),
        "codes_per_level": max(ids.sizes[:-1]),
        "use": float(np.mean(report["use"][:-1])),
        "entropy_bits": float(bits.sum()),
        "evenness": float((bits / most).mean()),
        **{key: report[key] for key in UNITS if key in report and key != "use"},
        "category_purity": purity(first, data.categories),
        "category_information": float(adjusted_mutual_info_score(data.categories, first)),
        "next_code_lift": lift(first, *data.validation),
    }
    if (
        report["collisions_before"] == 0 and not tokenizer.encodes_new
    ):  # the codes are the item's number: nothing is lost
        del row["reconstruction_error"], row["reconstruction_error_full"]
    return row


def purity(codes: np.ndarray, truth: np.ndarray) -> float:
    _, rows = np.unique(codes, return_inverse=True)
    _, columns = np.unique(truth, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return float(table.max(axis=1).sum() / len(codes))


def lift(codes: np.ndarray, histories: list[np.ndarray], targets: np.ndarray) -> float:
    """P(the target has the last item's code) over what it would be were both drawn apart."""
    last = codes[[history[-1] for history in histories]]
    after = codes[targets]
    shares = [np.bincount(side, minlength=codes.max() + 1) / len(side) for side in (last, after)]
    return float((last == after).mean() / (shares[0] * shares[1]).sum())


def retrieval_row(name: str, data: Data, work: Path, epochs: int, seed: int) -> dict[str, float]:
    """Train the same retriever on the tokenizer's IDs and ask for the validation items, in every mode."""
    from retrieval.model import RetrieverConfig
    from retrieval.training import train_retriever

    ids = SemanticIds.load(work / "ids")
    config = RetrieverConfig(
        epochs=epochs, code_epochs=2, batch_size=128, learning_rate=2e-3, negatives=1024, queries=0.0,
        full_softmax_up_to=0,
    )  # fmt: skip
    with progress(f"training the retriever on {name}", unit="epochs") as tick:
        retriever = train_retriever(
            data.context.histories,
            data.vectors,
            ids,
            config,
            validation=data.validation,
            seed=seed,
            checkpoint_dir=work / f"retriever-{epochs}-{seed}",
            progress=tick,
        )
    row = {}
    for mode in MODES:
        items, _ = retriever.recommend(data.validation[0], 10, mode=mode)  # type: ignore[arg-type]
        row[f"recall@10 {mode}"], row[f"ndcg@10 {mode}"] = recall_and_ndcg(items, data.validation[1])
    shutil.rmtree(work / f"retriever-{epochs}-{seed}", ignore_errors=True)
    return row


def records_of(state: dict[str, Any], seed: int) -> list[results.Record]:
    def record(split: str, model: str, metric: str, measured: dict[str, Any], command: str) -> results.Record:
        return results.Record(
            dataset=DATASET,
            split=split,
            model=model,
            metric=metric.split()[0],
            mean=measured[metric],
            seeds=(seed,),
            command=command,
            commit=measured["commit"],
            machine=measured["machine"],
        )

    command = "python benchmarks/item_tokenizers.py --record docs/results"
    found = []
    for name, rows in state.items():
        codes = rows["codes"]
        found += [record("item tokenizers", name, metric, codes, command) for metric in codes if metric in UNITS]
        for epochs, row in rows.get("retrieval", {}).items():
            trained = f"{command} --epochs {epochs}"
            for metric in row:
                if "@" in metric:
                    mode = MODES[metric.split()[1]]
                    found.append(record("strict-validation", f"tokenizer {name}, {mode}", metric, row, trained))
    return found


def measured_here(row: dict[str, float]) -> dict[str, Any]:
    return {**row, "commit": results.commit(), "machine": results.machine()}


def told(row: dict[str, Any]) -> str:
    return json.dumps({key: round(value, 4) for key, value in row.items() if isinstance(value, float | int)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MMREC_DATA", "../shared/data")))
    parser.add_argument(
        "--work", type=Path, default=Path("workspaces/tokenizers"), help="where finished parts are kept"
    )
    parser.add_argument("--only", nargs="+", default=tokenizer_names(), choices=tokenizer_names(), metavar="NAME")
    parser.add_argument("--again", nargs="+", default=[], choices=tokenizer_names(), metavar="NAME")
    parser.add_argument("--epochs", type=int, help="train the retriever for so many epochs too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / f"state-{options.seed}.json"
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in options.again:
        state.pop(name, None)
        shutil.rmtree(options.work / f"{name}-{options.seed}", ignore_errors=True)
    data = load(options.data, options.work)
    for name in options.only:
        work = options.work / f"{name}-{options.seed}"
        rows = state.setdefault(name, {})
        if "codes" not in rows:
            rows["codes"] = measured_here(codes_row(name, data, work, options.seed))
            write_text(file, json.dumps(state, indent=1))
        print(name, told(rows["codes"]), flush=True)
        trained = rows.setdefault("retrieval", {})
        if options.epochs and str(options.epochs) not in trained:
            row = retrieval_row(name, data, work, options.epochs, options.seed)
            trained[str(options.epochs)] = measured_here(row)
            write_text(file, json.dumps(state, indent=1))
        for epochs, row in trained.items():
            print(f"  {epochs} epochs:", told(row), flush=True)
        if options.record:
            print(results.write_records("tokenizers", records_of({name: rows}, options.seed), options.record))
    print("\n".join(f"{metric}: {meaning}" for metric, meaning in UNITS.items()))


if __name__ == "__main__":
    main()
