"""Rates of several contenders, measured in turns so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from mmrec import results


@dataclass(frozen=True)
class Cost:
    """Seconds per unit of work, each the least of all rounds."""

    cpu: float
    wall: float


def in_turns(work: Mapping[str, Callable[[], object]], units: Mapping[str, int], rounds: int) -> dict[str, Cost]:
    """Run each piece of work once to warm up, then `rounds` times, one after the other."""
    for run in work.values():
        run()
        _settle()
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            run()
            _settle()
            cpu[name].append((time.process_time() - cpu_start) / units[name])
            wall[name].append((time.perf_counter() - wall_start) / units[name])
    return {name: Cost(min(cpu[name]), min(wall[name])) for name in work}


def _settle() -> None:
    """Wait for what was given to a GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@cache
def here() -> tuple[str, str]:
    """The commit and the machine of this run."""
    return results.commit(), results.machine()


def record(
    dataset: str, split: str, model: str, metric: str, values: Sequence[float], seeds: Sequence[int], command: str
) -> results.Record:
    """One number per seed as a record of this commit and this machine."""
    commit, machine = here()
    return results.Record(
        dataset=dataset,
        split=split,
        model=model,
        metric=metric,
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        seeds=tuple(seeds),
        command=command,
        commit=commit,
        machine=machine,
    )
