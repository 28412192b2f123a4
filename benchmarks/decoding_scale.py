"""Does decoding grow with the catalog? Our default model, beam 50, 10 thousand to 1 million items, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.decoding_scale --record docs/results
    python -m benchmarks.decoding_scale --device cuda --seeds 0 --record docs/results

Time of the beam search alone per person, a history of 50 items hidden from each and the making of that mask included,
for 32 people at once (256 on a GPU, where the clock counts); the same with half the catalog allowed; for one person
alone; how long the tree of semantic IDs takes to build and what it weighs. Codes are four levels of 256, first codes
unevenly used; a million items also with codes that suit so many, a wide first level and a narrow second one. Weights
are random: what is computed does not depend on what was learned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.decoding import BEAM, SEEDS, SIZES, catalog, default_model, spent
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
PEOPLE = {"cpu": 32, "cuda": 256}
HISTORY, ROUNDS = 50, 5
COMMAND = {
    "cpu": "OMP_NUM_THREADS=1 python -m benchmarks.decoding_scale --record docs/results",
    "cuda": "python -m benchmarks.decoding_scale --device cuda --seeds 0 --record docs/results",
}


def measure(seed: int, device: torch.device) -> dict[str, dict[str, float]]:
    torch.manual_seed(seed)
    random, everybody = np.random.default_rng(seed), PEOPLE[device.type]
    h = torch.randn(everybody, RetrieverConfig().dim).to(device)
    work: dict[str, Callable[[], object]] = {}
    units: dict[str, int] = {}
    told: dict[str, dict[str, float]] = {}
    for name, (items, sizes) in CATALOGS.items():
        codes = catalog(items, seed, sizes)
        start = time.process_time()
        trie = Trie(codes, sizes)
        told[name] = {"build_cpu_seconds": time.process_time() - start, "megabytes": trie.nbytes / 1e6}
        model = default_model(codes, seed, sizes).to(device).model
        hidden = [random.integers(items, size=HISTORY) for _ in range(everybody)]
        allowed = random.random(items) < 0.5

        def search(
            people: int, permitted: np.ndarray | None, model: SequenceModel = model, hidden: list = hidden
        ) -> None:
            beam_search(model, h[:people], model.trie.reachable(permitted, hidden[:people]), 10, BEAM)

        for what, people, permitted in (
            ("", everybody, None),
            (", half allowed", everybody, allowed),
            (", one person", 1, None),
        ):
            work[f"{name}{what}"] = partial(search, people, permitted)
            units[f"{name}{what}"] = people
    costs = in_turns(work, units, ROUNDS)
    smallest, ms = next(iter(CATALOGS)), "cpu_ms" if device.type == "cpu" else "ms"
    for name in told:
        told[name] |= {
            f"{ms}_per_user": 1e3 * spent(costs[name], device),
            "times_10_thousand": spent(costs[name], device) / spent(costs[smallest], device),
            f"{ms}_per_user_half_allowed": 1e3 * spent(costs[f"{name}, half allowed"], device),
            f"{ms}_of_one_user_alone": 1e3 * spent(costs[f"{name}, one person"], device),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the models are")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, seeds = torch.device(options.device), [int(seed) for seed in options.seeds.split(",")]
    runs = [measure(seed, device) for seed in seeds]
    split = "beam 50" if options.device == "cpu" else "beam 50, one GPU"
    records = []
    for model in runs[0]:
        for metric in runs[0][model]:
            values = [run[model][metric] for run in runs]
            command = COMMAND[options.device]
            records.append(record("decoding by catalog size", split, model, metric, values, seeds, command))
            print(f"{model}: {metric} {np.mean(values):.3f}")
    if options.record:
        results.write_records("decoding-scale", records, options.record)


if __name__ == "__main__":
    main()
