"""The training loop of baselines that bring a model and a loss of their own, resumable to the bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.files import write_atomically
from retrieval.training import mix, schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")


class Schedule(Protocol):
    """The knobs of training that the config of every such baseline has. `patience` counts epochs; `stop_after`
    cuts a schedule of `epochs` short."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def patience(self) -> int: ...
    @property
    def stop_after(self) -> int | None: ...


def fit(
    make_model: Callable[[], nn.Module],
    config: Schedule,
    batches: Callable[[int], Sequence[Batch]],
    loss_of: Callable[[nn.Module, Batch, torch.device], Tensor],
    *,
    score: Callable[[nn.Module], float] | None,
    fingerprint: str,
    seed: int,
    checkpoint_dir: Path | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[nn.Module, int]:
    """Train a new model with AdamW, linear warmup and a cosine; return it in eval mode, on the device used, and the
    number of epochs that made it.

    batches: epoch -> its batches, a pure function. loss_of: a scalar. score: higher is better; the best epoch is kept,
    and training stops once it has not risen for `patience` epochs. Saved into checkpoint_dir after every epoch; run
    again it goes on from there and ends with the weights of an undisturbed run. Accelerate's own switch for half
    precision holds here, too (`ACCELERATE_MIXED_PRECISION=bf16`). Raises ValueError for a checkpoint of another
    `fingerprint`.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    device = accelerator.device
    path = None if checkpoint_dir is None else Path(checkpoint_dir) / "checkpoint.pt"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model().to(device)
        optimizer = _optimizer(model, config)
        state: dict[str, Any] = {"epoch": 0, "best": None, "best_epoch": 0, "best_score": -math.inf, "finished": False}
        if path is not None and path.is_file():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved.pop("fingerprint") != fingerprint:
                raise ValueError(f"{path} belongs to another run (other data, config, seed or precision): delete it")
            model.load_state_dict(saved.pop("model"))
            optimizer.load_state_dict(saved.pop("optimizer"))
            state = saved
        while state["epoch"] < (config.stop_after or config.epochs) and not state["finished"]:
            epoch = state["epoch"]
            torch.manual_seed(mix(seed, epoch))  # all that is random in an epoch follows from (seed, epoch)
            loss = _epoch(model, optimizer, config, batches(epoch), loss_of, epoch, accelerator)
            state["epoch"] = epoch + 1
            note = ""
            if score is not None:
                found = score(model.eval())
                note = f", validation {found:.4f}"
                if found > state["best_score"]:
                    best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                    state.update(best=best, best_epoch=epoch + 1, best_score=found)
                state["finished"] = epoch + 1 - state["best_epoch"] >= config.patience
            log.info("epoch %d of %d: loss %.4f%s", epoch + 1, config.epochs, loss, note)
            if path is not None:
                learned = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                write_atomically(path, partial(torch.save, state | learned | {"fingerprint": fingerprint}))
            if progress is not None:
                progress(epoch + 1, config.epochs)
        if state["best"] is not None:
            model.load_state_dict(state["best"])
    return model.eval(), state["best_epoch"] or state["epoch"]


def grouped(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers in batches of like length, the batches in random order: a pure function."""
    random = np.random.default_rng([seed, epoch])
    order = np.lexsort([random.random(len(lengths)), lengths])
    groups = np.split(order, range(batch_size, len(order), batch_size))
    return [groups[group] for group in random.permutation(len(groups))]


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Schedule,
    todo: Sequence[Batch],
    loss_of: Callable[[nn.Module, Batch, torch.device], Tensor],
    epoch: int,
    accelerator: Accelerator,
) -> float:
    model.train()
    total = torch.zeros((), device=accelerator.device)
    for step, batch in enumerate(todo):
        done = (epoch + step / len(todo)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(done, config.warmup)
        with accelerator.autocast():
            loss = loss_of(model, batch, accelerator.device)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.detach()
    return float(total) / len(todo)


def _optimizer(model: nn.Module, config: Schedule) -> torch.optim.Optimizer:
    """AdamW; what is not a matrix does not decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
