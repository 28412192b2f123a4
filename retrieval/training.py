"""Training the sequence model, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.files import write_atomically
from retrieval.model import RetrieverConfig, SequenceModel
from retrieval.ranking import check_histories
from retrieval.retriever import Retriever
from retrieval.semantic_ids.base import SemanticIds

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Validation = tuple[Sequence[np.ndarray], np.ndarray]


def train_retriever(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig = RetrieverConfig(),
    *,
    validation: Validation | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    items: int | None = None,
) -> Retriever:
    """Train on what people liked, in order; return the retriever.

    histories: one int64 array of item indices per person, oldest first, without the disliked. vectors: float32 [N, D]
    (unit length). ids: the items' semantic IDs. Either may be None, both together leave SASRec; then `items` gives N.
    validation: (histories, targets int64 [V]): training stops once the dense head's NDCG@10 has not risen for
    `patience` epochs, the best epoch is kept, and the fusion weight is chosen there. Without it, all epochs are run.
    checkpoint_dir: saved there after every epoch; run again, it goes on from the last one and ends with the weights of
    an undisturbed run. progress: called with (epochs done, epochs). Raises ValueError for a checkpoint of another run,
    or if the arguments do not fit together.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    count = items if vectors is None and ids is None else len(vectors if vectors is not None else ids)  # type: ignore[arg-type]
    if count is None:
        raise ValueError("without vectors and ids, items= must say how many items the catalog has")
    if vectors is not None and ids is not None and len(vectors) != len(ids):
        raise ValueError(f"{len(vectors)} vectors but {len(ids)} semantic IDs: they must be of the same catalog")
    histories = [history for history in check_histories(histories, count) if len(history)]
    if not histories:
        raise ValueError("there is no event to train on: every history is empty")

    # the buffers hold the catalog and never change: nothing to tell each other at every step
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    fingerprint = _fingerprint(histories, vectors, ids, config, validation, seed)
    checkpoint = checkpoint_dir / "checkpoint.pt" if checkpoint_dir is not None else None
    with torch.random.fork_rng():  # the caller's generator is not ours to move
        torch.manual_seed(seed)
        model = _new_model(histories, vectors, ids, config, count)
        optimizer = _optimizer(model, config)
        state: dict[str, Any] = {"epoch": 0, "best": None, "best_epoch": 0, "best_score": -1.0, "finished": False}
        if checkpoint is not None and checkpoint.is_file():
            state = _load_checkpoint(checkpoint, fingerprint, model, optimizer)
        model, optimizer = accelerator.prepare(model, optimizer)
        plain: SequenceModel = accelerator.unwrap_model(model)
        while state["epoch"] < (config.stop_after or config.epochs) and not state["finished"]:
            epoch = state["epoch"]
            loss = _train_epoch(accelerator, model, optimizer, histories, config, count, seed, epoch)
            state["epoch"] = epoch + 1
            note = ""
            if validation is not None:
                score = _ndcg(plain, accelerator.device, validation)
                note = f", validation ndcg@10 {score:.4f}"
                if score > state["best_score"]:
                    best = {name: tensor.detach().cpu().clone() for name, tensor in plain.named_parameters()}
                    state.update(best=best, best_epoch=epoch + 1, best_score=score)
                state["finished"] = epoch + 1 - state["best_epoch"] >= config.patience
            log.info("epoch %d of %d: loss %.4f%s", epoch + 1, config.epochs, loss, note)
            if checkpoint is not None and accelerator.is_main_process:
                _save_checkpoint(checkpoint, fingerprint, state, plain, optimizer)
            if progress is not None:
                progress(epoch + 1, config.epochs)
        if state["best"] is not None:
            plain.load_state_dict(state["best"], strict=False)
            plain.config = replace(config, stop_after=state["best_epoch"])
        retriever = Retriever(plain, accelerator.device)
        if validation is not None and ids is not None:
            retriever = retriever.choose_fusion_weight(*validation)
    return retriever.to("cpu")


def batches(histories: Sequence[np.ndarray], window: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch of batches int64 [B, T], padded with -1 at the end: a pure function of its arguments.

    A history longer than `window` is cut into pieces at an offset drawn anew every epoch, so that all of it is trained
    on. Batches hold pieces of like length, in random order.
    """
    random = np.random.default_rng([seed, epoch])
    pieces: list[np.ndarray] = []
    for history in histories:
        cut = int(random.integers(window)) if len(history) > window else 0
        edges = [0, *range(cut or window, len(history), window), len(history)]
        pieces.extend(history[start:end] for start, end in pairwise(edges))
    lengths = np.array([len(piece) for piece in pieces])
    order = np.lexsort([random.random(len(pieces)), lengths])
    groups = np.split(order, range(batch_size, len(order), batch_size))
    result = []
    for group in random.permutation(len(groups)):
        rows = groups[group]
        batch = np.full((len(rows), int(lengths[rows].max())), -1, dtype=np.int64)
        for place, row in enumerate(rows):
            batch[place, : lengths[row]] = pieces[row]
        result.append(batch)
    return result


def _train_epoch(
    accelerator: Any,
    model: torch.nn.Module,
    optimizer: Any,
    histories: Sequence[np.ndarray],
    config: RetrieverConfig,
    items: int,
    seed: int,
    epoch: int,
) -> float:
    # Everything random in this epoch follows from (seed, epoch), so resuming needs no generator state.
    generator = torch.Generator().manual_seed(mix(seed, epoch, 0))
    torch.manual_seed(mix(seed, epoch, 1 + accelerator.process_index))
    todo = batches(histories, config.max_history, config.batch_size, seed, epoch)
    model.train()
    total = 0.0
    for step, batch in enumerate(todo):
        rate = config.learning_rate * schedule((epoch + step / len(todo)) / config.epochs, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        negatives = None
        if items > config.full_softmax_up_to:
            negatives = torch.randint(items, (config.negatives,), generator=generator).to(accelerator.device)
        rows, share = _mine(batch, accelerator.process_index, accelerator.num_processes)
        loss = share * model(torch.from_numpy(rows).to(accelerator.device), negatives)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / len(todo)


def _mine(batch: np.ndarray, process: int, processes: int) -> tuple[np.ndarray, float]:
    """The rows of a batch [B, T] that one of the processes takes, and what their mean loss counts.

    Gradients are averaged over processes; weighed so, their average is that of the whole batch's mean over positions.
    """
    rows = batch[process::processes]
    if not len(rows):  # fewer rows than processes: somebody's counts nothing
        return batch[:1], 0.0
    return rows, float((rows >= 0).sum() * processes / (batch >= 0).sum())


def schedule(done: float, warmup: float) -> float:
    """Linear warmup, then a cosine down to a hundredth; `done` runs from 0 to 1."""
    if done < warmup:
        return max(0.01, done / warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def mix(*numbers: int) -> int:
    """One seed of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def fingerprint_of(config: Any, seed: int, arrays: Sequence[np.ndarray]) -> str:
    """Tells one run from another: the config (a dataclass), the seed and all that is learned from."""
    digest = hashlib.sha256(json.dumps([asdict(config), seed], sort_keys=True).encode())
    for array in arrays:
        digest.update(str(np.shape(array)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _new_model(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig,
    count: int,
) -> SequenceModel:
    seen = torch.zeros(count, dtype=torch.bool)
    seen[torch.from_numpy(np.unique(np.concatenate(histories)))] = config.residual
    content = torch.zeros(count, 0) if vectors is None else torch.tensor(np.asarray(vectors), dtype=torch.float32)
    codes = torch.zeros(count, 0, dtype=torch.long) if ids is None else torch.tensor(ids.codes)
    return SequenceModel(config, content, codes, () if ids is None else ids.sizes, seen)


def _optimizer(model: SequenceModel, config: RetrieverConfig) -> torch.optim.Optimizer:
    """AdamW; norms, biases and positions do not decay."""
    decay = [p for name, p in model.named_parameters() if p.dim() > 1 and name != "backbone.positions"]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1 or name == "backbone.positions"]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _ndcg(model: SequenceModel, device: torch.device, validation: Validation) -> float:
    """NDCG@10 of the dense head."""
    ranks = Retriever(model, device).rank_of(*validation)
    return float(np.where(ranks < 10, 1.0 / np.log2(ranks + 2.0), 0.0).mean())


def _fingerprint(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig,
    validation: Validation | None,
    seed: int,
) -> str:
    arrays = [*histories, *([] if validation is None else [*validation[0], validation[1]])]
    arrays += [] if vectors is None else [vectors]
    arrays += [] if ids is None else [ids.codes]
    return fingerprint_of(config, seed, arrays)


def _save_checkpoint(path: Path, fingerprint: str, state: dict[str, Any], model: SequenceModel, optimizer: Any) -> None:
    everything = {
        **state,
        "fingerprint": fingerprint,
        "model": {name: tensor.detach() for name, tensor in model.named_parameters()},
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(path, lambda temporary: torch.save(everything, temporary))


def _load_checkpoint(
    path: Path, fingerprint: str, model: SequenceModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    everything = torch.load(path, map_location="cpu", weights_only=True)
    if everything["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} belongs to another run (other data, config or seed): delete it or give another folder"
        )
    model.load_state_dict(everything["model"], strict=False)
    optimizer.load_state_dict(everything["optimizer"])
    return {name: everything[name] for name in ("epoch", "best", "best_epoch", "best_score", "finished")}
