"""AdamW for tables of which a step touches few rows: it ends where AdamW would, and costs what the rows cost.

AdamW (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2) moves every row at every step:
one whose gradient is zero decays, and goes on in the direction it last had, ever slower. None of that depends on
anything but how often it happened, so a row can be left alone and brought up to date when it is next looked at. That
is exact but for rounding and for epsilon, which counts in full while a row waits. (The lazy Adam of other libraries,
`torch.optim.SparseAdam` among them, leaves those moves out: a row that is rarely met learns up to ten times slower.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

REACH = 512  # steps after which a direction is forgotten: (beta1 / sqrt(beta2)) ** 512 is nothing
AT_ONCE = 1 << 12  # rows, so that what is worked out for them stays in a cache


class LazyAdamW(torch.optim.Optimizer):
    """The optimizer of the weights of these embeddings, which are told to have sparse gradients.

    A row is up to date whenever it is looked up to be learned. Call `join` before `step` and whatever else reads
    gradients, `flush` before anything else reads weights, and `release` at the end.
    """

    def __init__(
        self,
        tables: Sequence[nn.Embedding],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
    ) -> None:
        self.tables = tables
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0}
        super().__init__([table.weight for table in tables], options)
        for table in tables:
            table.sparse = True
            self.state[table.weight] = {name: torch.zeros_like(table.weight) for name in ("mean", "square")}
        self._hooks = [table.register_forward_pre_hook(self._before_lookup) for table in tables]
        self._forget()

    def _forget(self) -> None:
        """All rows are up to date: steps are counted from here."""
        self._since = 0
        self._current: dict[Tensor, Tensor] = {}  # per table int64 [rows], the step each row was brought up to
        self._drift = torch.zeros(REACH, dtype=torch.float64)  # how far a row goes on that was current at each step
        self._decay = torch.zeros(REACH, dtype=torch.float64)  # log of what is left of a row that was there all along

    def _before_lookup(self, table: nn.Module, arguments: tuple[Any, ...]) -> None:
        weight = table.weight
        if torch.is_grad_enabled() and isinstance(weight, Tensor) and weight.requires_grad:
            self._catch_up(weight, arguments[0].flatten())

    def join(self) -> None:
        """One gradient per row: what several lookups left is summed."""
        for table in self.tables:
            if table.weight.grad is not None:
                table.weight.grad = table.weight.grad.coalesce()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of AdamW for the rows that have a gradient, which are up to date; the others wait."""
        (options,) = self.param_groups
        rate, (beta1, beta2), step = options["lr"], options["betas"], options["steps"] + 1
        slow, short = 1 - beta1**step, (1 - beta2**step) ** 0.5  # what the averages lack at first
        for weight in options["params"]:
            if weight.grad is None or weight.grad._nnz() == 0:
                continue
            all_rows, gradients = weight.grad._indices()[0], weight.grad._values()  # joined; clipping hides that it is
            state = self.state[weight]
            for rows, gradient in zip(all_rows.split(AT_ONCE), gradients.split(AT_ONCE), strict=True):
                mean = state["mean"][rows].lerp_(gradient, 1 - beta1)
                square = state["square"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                moved = weight[rows].mul_(1 - rate * options["weight_decay"])
                moved.addcdiv_(mean, square.sqrt().div_(short).add_(options["eps"]), value=-rate / slow)
                for whole, part in ((state["mean"], mean), (state["square"], square), (weight, moved)):
                    whole.index_copy_(0, rows, part)
            self._currency(weight)[all_rows] = self._since + 1
        options["steps"] = step
        self._count(rate, short / slow)

    def _count(self, rate: float, warm: float) -> None:
        """A step was made: what the rows that were not in it have to make up for."""
        (options,) = self.param_groups
        beta1, beta2 = options["betas"]
        now = self._since + 1
        if now == len(self._drift):
            self._drift, self._decay = (
                torch.cat([kept, torch.zeros_like(kept)]) for kept in (self._drift, self._decay)
            )
        left = 1 - rate * options["weight_decay"]
        waited = torch.arange(min(now, REACH), 0, -1, dtype=torch.float64)
        self._drift[:now] *= left
        self._drift[now - len(waited) : now] += rate * warm * (beta1 / beta2**0.5) ** waited
        self._decay[now] = self._decay[now - 1] + math.log(left)
        self._since = now

    def _currency(self, weight: Tensor) -> Tensor:
        if weight not in self._current:
            self._current[weight] = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
        return self._current[weight]

    @torch.no_grad()
    def _catch_up(self, weight: Tensor, rows: Tensor) -> None:
        """Bring rows (int64 [R], any of them repeatedly) to the last step."""
        (options,) = self.param_groups
        current, state, (beta1, beta2) = self._currency(weight), self.state[weight], options["betas"]
        for some in rows[current[rows] < self._since].unique().split(AT_ONCE):
            at = current[some].cpu()
            waited = (self._since - at).double()
            mean, square = state["mean"][some], state["square"][some]
            moved = weight[some].mul_(_per_row((self._decay[self._since] - self._decay[at]).exp(), weight))
            moved.addcdiv_(mean * _per_row(self._drift[at], weight), square.sqrt().add_(options["eps"]), value=-1)
            mean.mul_(_per_row(beta1**waited, weight))
            square.mul_(_per_row(beta2**waited, weight))
            for whole, part in ((state["mean"], mean), (state["square"], square), (weight, moved)):
                whole.index_copy_(0, some, part)
            current[some] = self._since

    def flush(self) -> None:
        """Bring all rows up to date."""
        for table in self.tables:
            self._catch_up(table.weight, torch.arange(len(table.weight), device=table.weight.device))
        self._forget()

    def release(self) -> None:
        """Leave the tables as they were found, and learned."""
        self.flush()
        for table, hook in zip(self.tables, self._hooks, strict=True):
            hook.remove()
            table.sparse = False


def _per_row(numbers: Tensor, weight: Tensor) -> Tensor:
    return numbers.to(weight).unsqueeze(1)
