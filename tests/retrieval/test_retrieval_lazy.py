"""Tables of which a step touches few rows end where AdamW takes them, whole trainings included."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import retrieval.training
from retrieval.lazy import REACH, LazyAdamW
from retrieval.model import dots
from retrieval.training import train_retriever

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.05}


def learned(lazy: bool, steps: int, flushed: tuple[int, ...] = ()) -> tuple[torch.Tensor, nn.Embedding]:
    """A table after steps in each of which a few of its rows, some of them hardly ever, are drawn somewhere."""
    torch.manual_seed(0)
    table = nn.Embedding(60, 4)
    optimizer = LazyAdamW([table], **OPTIONS) if lazy else torch.optim.AdamW(table.parameters(), **OPTIONS)
    generator = torch.Generator().manual_seed(1)
    often = torch.rand(60, generator=generator) ** 6
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * math.cos(1.5 * step / steps)
        rows = torch.multinomial(often, 5, True, generator=generator)
        pull = torch.randn(5, 4, generator=generator)
        ((table(rows) * pull).sum() + table(rows[:2]).sum()).backward()
        if isinstance(optimizer, LazyAdamW):
            optimizer.join()
        torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(optimizer, LazyAdamW) and step in flushed:
            optimizer.flush()
    if isinstance(optimizer, LazyAdamW):
        optimizer.release()
    return table.weight.detach(), table


@pytest.mark.parametrize("flushed", [(), (100, 101, 900)])
def test_rows_end_where_adamw_takes_them(flushed: tuple[int, ...]) -> None:
    steps = 2 * REACH + 300
    expected, _ = learned(False, steps)
    found, _ = learned(True, steps, flushed)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_released_table_is_as_it_was_found() -> None:
    _, table = learned(True, 20)
    assert not table.sparse
    table(torch.tensor([1])).sum().backward()
    assert table.weight.grad is not None
    assert not table.weight.grad.is_sparse


@pytest.mark.parametrize("with_validation", [True, False])
def test_a_training_with_large_tables_ends_where_one_without_does(
    world, small, monkeypatch: pytest.MonkeyPatch, with_validation: bool
) -> None:
    config = replace(small, full_softmax_up_to=10, negatives=20, epochs=3, code_epochs=2, dropout=0.0)
    validation = (world.histories[:40], world.targets[:40]) if with_validation else None
    arguments = (world.histories, world.vectors, world.ids, config)
    expected = train_retriever(*arguments, validation=validation, seed=5)
    monkeypatch.setattr(retrieval.training, "LARGE_TABLE", 1)
    found = train_retriever(*arguments, validation=validation, seed=5)
    np.testing.assert_allclose(
        found.score_all(world.histories[:20]), expected.score_all(world.histories[:20]), atol=0.01
    )


def test_killed_and_resumed_equals_undisturbed_and_another_version_is_refused(
    world, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small, full_softmax_up_to=10, negatives=20, epochs=3, code_epochs=2)
    arguments = (world.histories, world.vectors, world.ids, config)
    monkeypatch.setattr(retrieval.training, "LARGE_TABLE", 1)
    undisturbed = train_retriever(*arguments, seed=5)

    def kill(done: int, _: int) -> None:
        if done in (2, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_retriever(*arguments, seed=5, checkpoint_dir=tmp_path, progress=kill)
    resumed = train_retriever(*arguments, seed=5, checkpoint_dir=tmp_path)
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    monkeypatch.setattr(retrieval.training, "LARGE_TABLE", 1_000_000)
    with pytest.raises(ValueError, match="delete it"):
        train_retriever(*arguments, seed=5, checkpoint_dir=tmp_path)


def test_listed_dot_products_and_their_gradients_are_those_of_gathered_rows() -> None:
    torch.manual_seed(0)
    read, known = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    edges, row, at = torch.tensor([0, 2, 3, 6]), torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 4, 2, 0, 2, 3])
    weight = torch.randn(6)
    expected = (read[row] * known[at]).sum(dim=1)
    found = dots(read, known, edges, at)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (read, known), weight),
        torch.autograd.grad(expected, (read, known), weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
