"""Guided seeds per second: our prior beside a REBECA-faithful sampler, in one run.

Ours is the default network in 512 dimensions with a history of 50, dials away from 1 so that two branches are
evaluated, 8 steps. REBECA's 1000 steps of two forwards are run in full, for few seeds. Rates are per CPU-second of one
core and per second of all; `OMP_NUM_THREADS` says how many cores that is. Run `python -m benchmarks.prior_speed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.prior.references import LEVELS, Rebeca, sample
from benchmarks.timing import in_turns, record
from diffusion.guidance import Dials
from diffusion.network import Denoiser, PriorConfig
from diffusion.prior import POOL, Conditions, Prior
from mmrec import results

DIM, PEOPLE, EACH, HISTORY = 512, 16, 16, 50
FEW = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, default=results.DIRECTORY)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    history = rng.standard_normal((PEOPLE, HISTORY, DIM)).astype(np.float32)
    history /= np.linalg.norm(history, axis=-1, keepdims=True)
    conditions = Conditions(history, np.ones((PEOPLE, HISTORY), np.float32), np.ones((PEOPLE, HISTORY), bool))
    prior = Prior(Denoiser(PriorConfig(dim=DIM)))
    rebeca = Rebeca(DIM, PEOPLE).eval()
    dials = Dials(likes=2.0)
    work = {"ours": lambda: prior.sample(conditions, EACH, dials=dials, pool=POOL)}
    cost = in_turns(work, {"ours": PEOPLE * EACH}, options.rounds)
    cost |= in_turns({"REBECA-faithful": lambda: sample(rebeca, np.arange(FEW), 1, 0)}, {"REBECA-faithful": FEW}, 1)
    cores = torch.get_num_threads()
    command = f"OMP_NUM_THREADS={cores} python -m benchmarks.prior_speed"
    rows = {
        "ours": ("our prior, 8 guided steps", POOL * 16),
        "REBECA-faithful": ("REBECA-faithful, 1000 steps", 2 * LEVELS),
    }
    records = []
    for name, (model, evaluations) in rows.items():
        for metric, value in (
            ("seeds_per_cpu_second", 1 / cost[name].cpu),
            ("seeds_per_second", 1 / cost[name].wall),
            ("evaluations", evaluations),
        ):
            print(f"{model}: {metric} {value:.2f}", flush=True)
            records.append(record("prior speed, 512-d", f"threads: {cores}", model, metric, [value], [0], command))
    print(results.write_records("prior-speed", records, options.record))


if __name__ == "__main__":
    main()
