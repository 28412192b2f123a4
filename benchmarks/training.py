"""How fast the retriever trains, how much of the machine that uses, and what half precision costs in quality.

    OMP_NUM_THREADS=1 python -m benchmarks.training --record docs/results

Amazon Beauty, strict protocol, the recipe's model for a few epochs, in float32 and in bfloat16 (accelerate's mixed
precision, on a GPU where there is one). *Model FLOPs utilization*: the multiplications of forward and backward as
PyTorch counts them, per second of training, over what one large product of matrices reaches on the same device in the
same precision. The codes are learned after the items and timed apart. Quality is judged on the validation events.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.sequence_options import Data, load
from benchmarks.timing import record
from mmrec import results
from retrieval.model import SequenceModel
from retrieval.ranking import recall_and_ndcg
from retrieval.training import CodesLoss, batches, train_retriever

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
EPOCHS, CODE_EPOCHS, SEED = 2, 1, 0
BATCHES = 20  # in which multiplications are counted
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.training --record docs/results"


def reachable(precision: str, device: torch.device, size: int = 2048, rounds: int = 5) -> float:
    """FLOPs per second of one large product of matrices, the best of a few."""
    dtype = getattr(torch, precision)
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


def flops_per_event(data: Data, model: SequenceModel) -> tuple[float, float]:
    """Multiplications and additions of forward and backward for one event: of the items' part, of the codes' part."""
    from torch.utils.flop_counter import FlopCounterMode

    config, counted = data.config, [0.0, 0.0]
    some = batches(data.histories, config.max_history, config.batch_size, SEED, 0)[:BATCHES]
    for batch in some:
        negatives = torch.randint(model.items, (config.negatives,))
        model.requires_grad_(True)
        for part, module in enumerate((model, CodesLoss(model))):
            if part:
                model.requires_grad_(False)
                assert model.decoder is not None
                model.decoder.requires_grad_(True)
            with FlopCounterMode(display=False) as counter:
                module(torch.from_numpy(batch), negatives, None).backward()
            counted[part] += counter.get_total_flops()
    events = sum(int((batch >= 0).sum()) for batch in some)
    return counted[0] / events, counted[1] / events


def measure(precision: str, data: Data) -> dict[str, float]:
    """One precision, in a process of its own since accelerate keeps the first it is told."""
    from accelerate import Accelerator

    device = Accelerator().device
    config = replace(data.config, epochs=EPOCHS, code_epochs=CODE_EPOCHS)
    marks = [_now(device)]

    def tick(done: int, of: int) -> None:
        marks.append(_now(device))
        print(f"{precision}: epoch {done} of {of}", file=sys.stderr, flush=True)

    retriever = train_retriever(data.histories, data.vectors, data.ids, config, seed=SEED, progress=tick)
    seconds = np.diff(marks)
    events = sum(len(history) for history in data.histories)
    of_items, of_codes = flops_per_event(data, retriever.model)
    peak = reachable(precision, device)
    rate = events * EPOCHS / seconds[:EPOCHS].sum()
    rate_of_codes = events * CODE_EPOCHS / seconds[EPOCHS:].sum()
    told = {
        "events per second": rate,
        "events per second, codes": rate_of_codes,
        "MFLOP per event": of_items / 1e6,
        "GFLOP per second of a product": peak / 1e9,
        "model FLOPs utilization": rate * of_items / peak,
        "model FLOPs utilization, codes": rate_of_codes * of_codes / peak,
    }
    for mode in ("dense", "codes"):
        lists, _ = retriever.recommend(data.asked[0], 10, mode=mode)  # type: ignore[arg-type]
        _, told[f"NDCG@10, {mode}"] = recall_and_ndcg(lists, data.asked[1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/options"), help="where the data set is prepared")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--one", choices=list(PRECISIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, load(options.work))))
        return
    made = []
    for precision, told_accelerate in PRECISIONS.items():
        command = [sys.executable, "-m", "benchmarks.training", "--work", str(options.work), "--one", precision]
        environment = os.environ | {"ACCELERATE_MIXED_PRECISION": told_accelerate}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        for metric, value in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"{precision}: {metric} {value:.4g}", flush=True)
            device = "one GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} thread(s)"
            split = f"amazon_beauty, {EPOCHS} epochs, {device}"
            made.append(record("training the retriever", split, precision, metric, [value], [SEED], COMMAND))
    if options.record:
        print(results.write_records("training", made, options.record))


if __name__ == "__main__":
    main()
