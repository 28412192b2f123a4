"""Does decoding grow with the catalog? Our default model, beam 50, 10 thousand to 1 million items, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.decoding_scale --record docs/results

Time of the beam search alone per person, a history of 50 items hidden from each and the making of that mask included,
for 32 people at once; the same with half the catalog allowed; for one person alone; how long the tree of semantic IDs
takes to build and what it weighs. Codes are four levels of 256, first codes unevenly used; a million items also with
codes that suit so many, a wide first level and a narrow second one. Weights are random: what is computed does not
depend on what was learned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.decoding import BEAM, SEEDS, SIZES, catalog, default_model
from benchmarks.timing import in_turns, record
from mmrec import results
from retrieval.decode import beam_search
from retrieval.model import RetrieverConfig, SequenceModel
from retrieval.trie import Trie

WIDE = (4096, 64, 256)
CATALOGS = {
    "10,000 items": (10_000, SIZES),
    "100,000 items": (100_000, SIZES),
    "1,000,000 items": (1_000_000, SIZES),
    "1,000,000 items, codes 4096 x 64 x 256": (1_000_000, WIDE),
}
PEOPLE, HISTORY, ROUNDS = 32, 50, 5
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.decoding_scale --record docs/results"


def measure(seed: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    dim = RetrieverConfig().dim
    h = torch.randn(PEOPLE, dim)
    work: dict[str, Callable[[], object]] = {}
    units: dict[str, int] = {}
    told: dict[str, dict[str, float]] = {}
    for name, (items, sizes) in CATALOGS.items():
        codes = catalog(items, seed, sizes)
        start = time.process_time()
        trie = Trie(codes, sizes)
        told[name] = {"build_cpu_seconds": time.process_time() - start, "megabytes": trie.nbytes / 1e6}
        model = default_model(codes, seed, sizes).model
        hidden = [random.integers(items, size=HISTORY) for _ in range(PEOPLE)]
        allowed = random.random(items) < 0.5

        def search(
            people: int, permitted: np.ndarray | None, model: SequenceModel = model, hidden: list = hidden
        ) -> None:
            beam_search(model, h[:people], model.trie.reachable(permitted, hidden[:people]), 10, BEAM)

        for what, people, permitted in (
            ("", PEOPLE, None),
            (", half allowed", PEOPLE, allowed),
            (", one person", 1, None),
        ):
            work[f"{name}{what}"] = partial(search, people, permitted)
            units[f"{name}{what}"] = people
    costs = in_turns(work, units, ROUNDS)
    smallest = next(iter(CATALOGS))
    for name in told:
        told[name] |= {
            "cpu_ms_per_user": 1e3 * costs[name].cpu,
            "times_10_thousand": costs[name].cpu / costs[smallest].cpu,
            "cpu_ms_per_user_half_allowed": 1e3 * costs[f"{name}, half allowed"].cpu,
            "cpu_ms_of_one_user_alone": 1e3 * costs[f"{name}, one person"].cpu,
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [measure(seed) for seed in SEEDS]
    records = []
    for model in runs[0]:
        for metric in runs[0][model]:
            values = [run[model][metric] for run in runs]
            records.append(record("decoding by catalog size", "beam 50", model, metric, values, SEEDS, COMMAND))
            print(f"{model}: {metric} {np.mean(values):.3f}")
    if options.record:
        results.write_records("decoding-scale", records, options.record)


if __name__ == "__main__":
    main()
