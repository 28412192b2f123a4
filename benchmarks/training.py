"""How fast the retriever trains, how much of the machine that uses, and what half precision costs in quality.

    OMP_NUM_THREADS=1 python -m benchmarks.training --record docs/results
    python -m benchmarks.training --shape whole --record docs/results    # where there is a GPU
    python -m benchmarks.training --shape wide --record docs/results

Amazon Beauty, strict protocol, in float32 and in bfloat16 (accelerate's mixed precision, on a GPU where there is one):
the recipe's model for a few epochs, or for its whole schedule, or a model wide enough for a GPU to have work. *Model
FLOPs utilization*: the multiplications of forward and backward as PyTorch counts them, per second of training, over
what one large product of matrices reaches on the same device in the same precision. The codes are learned after the
items and timed apart. Quality is judged on the validation events; the wide model's schedule is for its speed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sequence_options import WHOLE, Data, load
from benchmarks.timing import record
from mmrec import results
from retrieval.model import RetrieverConfig, SequenceModel
from retrieval.ranking import recall_and_ndcg
from retrieval.training import CodesLoss, batches, train_retriever

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
SHAPES: dict[str, dict[str, Any]] = {
    "few": {"epochs": 2, "code_epochs": 1},
    "whole": {"epochs": WHOLE},
    "wide": {"epochs": 5, "code_epochs": 0, "dim": 1024, "heads": 16, "blocks": 8, "batch_size": 4096},
}
SEED = 0
BATCHES = 20  # in which multiplications are counted
COMMAND = {
    "few": "OMP_NUM_THREADS=1 python -m benchmarks.training --record docs/results",
    "whole": "python -m benchmarks.training --shape whole --record docs/results",
    "wide": "python -m benchmarks.training --shape wide --record docs/results",
}


def reachable(precision: str, device: torch.device, rounds: int = 5) -> float:
    """FLOPs per second of one large product of matrices, the best of a few."""
    dtype, size = getattr(torch, precision), 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = np.inf
    for _ in range(rounds):
        start = _now(device)
        a @ b
        best = min(best, _now(device) - start)
    return 2 * size**3 / best


def _now(device: torch.device) -> float:
    """Seconds: of the processor where it is what trains, else of the clock once the device is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _of_product(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of a product of matrices, one of which may be sparse: PyTorch counts its zeros, too."""
    if b.layout != torch.strided:
        return 2 * a.shape[0] * b._nnz()
    return 2 * (a.numel() if a.layout == torch.strided else a._nnz()) * b.shape[1]


def _of_samples(wanted: torch.Tensor, a: torch.Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of some dot products of rows, which PyTorch does not count."""
    return 2 * wanted._nnz() * a.shape[1]


_of_product._get_raw = _of_samples._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes
SPARSE = {torch.ops.aten.mm: _of_product, torch.ops.aten.sparse_sampled_addmm: _of_samples}


def flops_per_event(data: Data, config: RetrieverConfig, model: SequenceModel) -> tuple[float, float]:
    """Multiplications and additions of forward and backward for one event: of the items' part, of the codes' part."""
    from torch.utils.flop_counter import FlopCounterMode

    counted, device = [0.0, 0.0], model.tower.seen.device
    some = batches(data.histories, config.max_history, config.batch_size, SEED, 0)[:BATCHES]
    for batch in some:
        negatives = torch.randint(model.items, (config.negatives,), device=device)
        model.requires_grad_(True)
        for part, module in enumerate((model, CodesLoss(model))):
            if part:
                model.requires_grad_(False)
                assert model.decoder is not None
                model.decoder.requires_grad_(True)
            with FlopCounterMode(display=False, custom_mapping=SPARSE) as counter:
                module(torch.from_numpy(batch).to(device), negatives, None).backward()
            counted[part] += counter.get_total_flops()
    events = sum(int((batch >= 0).sum()) for batch in some)
    return counted[0] / events, counted[1] / events


def measure(precision: str, shape: str, data: Data) -> dict[str, float]:
    """One precision, in a process of its own since accelerate keeps the first it is told."""
    from accelerate import Accelerator

    device = Accelerator().device
    config = replace(data.config, **SHAPES[shape])
    learn = partial(train_retriever, vectors=data.vectors, ids=data.ids, seed=SEED)
    learn(data.histories[: config.batch_size], config=replace(config, epochs=1, code_epochs=min(1, config.code_epochs)))
    marks = [_now(device)]

    def tick(done: int, of: int) -> None:
        marks.append(_now(device))
        print(f"{precision}: epoch {done} of {of}", file=sys.stderr, flush=True)

    retriever = learn(data.histories, config=config, progress=tick).to(device)
    seconds = np.diff(marks)
    events = sum(len(history) for history in data.histories)
    of_items, of_codes = flops_per_event(data, config, retriever.model)
    peak = reachable(precision, device)
    rate = events * config.epochs / seconds[: config.epochs].sum()
    told = {
        "seconds": seconds.sum(),
        "events per second": rate,
        "MFLOP per event": of_items / 1e6,
        "GFLOP per second of a product": peak / 1e9,
        "model FLOPs utilization": rate * of_items / peak,
    }
    if config.code_epochs:
        rate_of_codes = events * config.code_epochs / seconds[config.epochs :].sum()
        told["events per second, codes"] = rate_of_codes
        told["model FLOPs utilization, codes"] = rate_of_codes * of_codes / peak
        for mode in ("dense", "codes"):
            lists, _ = retriever.recommend(data.asked[0], 10, mode=mode)  # type: ignore[arg-type]
            _, told[f"NDCG@10, {mode}"] = recall_and_ndcg(lists, data.asked[1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/options"), help="where the data set is prepared")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--shape", choices=list(SHAPES), default="few", help="the model and its schedule")
    parser.add_argument("--one", choices=list(PRECISIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.shape, load(options.work))))
        return
    made = []
    for precision, told_accelerate in PRECISIONS.items():
        command = [sys.executable, "-m", "benchmarks.training", "--work", str(options.work)]
        command += ["--shape", options.shape, "--one", precision]
        environment = os.environ | {"ACCELERATE_MIXED_PRECISION": told_accelerate}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        for metric, value in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"{precision}: {metric} {value:.4g}", flush=True)
            device = "one GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} thread(s)"
            split = f"amazon_beauty, {SHAPES[options.shape]['epochs']} epochs, {device}"
            if options.shape == "wide":
                split += ", eight blocks of 1,024"
            made.append(
                record("training the retriever", split, precision, metric, [value], [SEED], COMMAND[options.shape])
            )
    if options.record:
        print(results.write_records("training", made, options.record))


if __name__ == "__main__":
    main()
