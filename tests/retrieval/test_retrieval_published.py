"""Losses and blocks of the published item models, where a hand or a formula can tell; and training after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn import functional as F

from retrieval.baselines import make_baseline
from retrieval.baselines.bert4rec import BERT4Rec, BidirectionalModel
from retrieval.baselines.hstu import HSTU, HSTUBlock
from retrieval.baselines.item_model import CausalModel
from retrieval.baselines.sasrec_bce import SASRecBCE
from retrieval.model import RetrieverConfig

TINY = RetrieverConfig(dim=8, blocks=1, heads=2, max_history=6, dropout=0.0, epochs=3, batch_size=32, negatives=30)
NAMES = ("sasrec_bce", "bert4rec", "hstu")


def test_binary_cross_entropy_leaves_out_what_the_person_used() -> None:
    """With every item used, nothing is left to tell the right one from."""
    torch.manual_seed(0)
    baseline, everything = SASRecBCE(TINY), torch.tensor([[0, 1, 2, 3]])
    model = CausalModel(TINY, 4).eval()
    h, target = model.pairs(everything)
    expected = F.softplus(-(h * model.items(target)).sum(-1)).mean()
    torch.testing.assert_close(baseline.loss(model, everything), expected)
    assert SASRecBCE(TINY).loss(CausalModel(TINY, 400).eval(), everything) > expected + 0.3  # one more softplus near 0


def test_hstu_reads_no_later_position_and_keeps_how_much_was_read() -> None:
    torch.manual_seed(0)
    block, x = HSTUBlock(8, 2, 0.0, window=6).eval(), torch.randn(2, 5, 8)
    changed = x.clone()
    changed[:, 3] = torch.randn(2, 8)
    torch.testing.assert_close(block(changed)[:, :3], block(x)[:, :3])
    assert not torch.allclose(block(changed)[:, 4], block(x)[:, 4])
    u, v, q, k = F.silu(block.uvqk(block.norm(x[:1, :2]))).chunk(4, dim=-1)  # position 1, by hand
    heads = [slice(0, 4), slice(4, 8)]
    mixed = torch.cat([sum(F.silu(q[0, 1, s] @ k[0, t, s]) * v[0, t, s] for t in (0, 1)) / 6 for s in heads])
    expected = x[0, 1] + block.out(block.mixed_norm(mixed) * u[0, 1])
    torch.testing.assert_close(block(x[:1])[0, 1], expected)


def test_bert4rec_reads_both_ways_but_neither_padding_nor_what_is_hidden() -> None:
    torch.manual_seed(0)
    model = BidirectionalModel(TINY, 50).eval()
    sequence, hide = torch.tensor([[4, 5, 6, -1]]), torch.tensor([[False, True, False, False]])
    before = model.states(sequence, hide)[0, 1]
    torch.testing.assert_close(model.states(torch.tensor([[4, 9, 6, -1]]), hide)[0, 1], before)
    torch.testing.assert_close(model.states(sequence[:, :3], hide[:, :3])[0, 1], before)
    for later in (torch.tensor([[4, 5, 7, -1]]), torch.tensor([[3, 5, 6, -1]])):
        assert not torch.allclose(model.states(later, hide)[0, 1], before)
    only_last = BERT4Rec(TINY)
    only_last.share = 0.0
    two = torch.tensor([[4, 5, 6], [7, 8, -1]])
    hide = torch.tensor([[False, False, True], [False, True, False]])
    logits = model.states(two, hide)[hide] @ model.items.weight.T
    torch.testing.assert_close(only_last.loss(model, two), F.cross_entropy(logits, torch.tensor([6, 8])))


def test_hstu_takes_the_full_softmax_where_the_catalog_is_small() -> None:
    sequences = torch.tensor([[5, 6, 7]])
    model = HSTU(TINY).network(100).eval()
    h, target = model.pairs(sequences)
    torch.testing.assert_close(HSTU(TINY).loss(model, sequences), F.cross_entropy(h @ model.items.weight.T, target))


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_equals_undisturbed(name: str, world, tmp_path: Path) -> None:
    def fitted(config: RetrieverConfig = TINY, **options) -> tuple[dict[str, torch.Tensor], RetrieverConfig]:
        baseline = make_baseline(name, config=config, validation=(world.histories[:9], world.targets[:9]), **options)
        baseline.fit(world.histories, None, world.vectors, seed=5)
        return baseline.model.state_dict(), baseline.chosen

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    undisturbed, chosen = fitted()
    assert 1 <= chosen.stop_after <= 3
    with pytest.raises(Killed):
        fitted(checkpoint_dir=tmp_path, progress=kill)
    resumed, _ = fitted(checkpoint_dir=tmp_path)
    for key, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[key]), key
    with pytest.raises(ValueError, match="another run"):
        fitted(replace(TINY, dropout=0.1), checkpoint_dir=tmp_path)


def test_trained_as_long_as_was_chosen_ends_with_the_chosen_weights(world) -> None:
    validated = make_baseline("hstu", config=TINY, validation=(world.histories[:50], world.targets[:50]))
    validated.fit(world.histories, None, world.vectors, seed=0)
    again = make_baseline("hstu", config=validated.chosen)
    again.fit(world.histories, None, world.vectors, seed=0)
    for key, tensor in validated.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_learns_the_same(name: str, world, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for precision in ("no", "bf16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        AcceleratorState._reset_state(reset_partial_state=True)
        baseline = make_baseline(name, config=TINY)
        baseline.fit(world.histories, None, world.vectors, seed=0)
        found[precision] = baseline.model.items.weight.detach().numpy().ravel()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not np.array_equal(found["no"], found["bf16"]), "bfloat16 was not used"
    assert np.corrcoef(found["no"], found["bf16"])[0, 1] > 0.98


def test_nothing_to_train_on_is_told() -> None:
    with pytest.raises(ValueError, match="every history is empty"):
        SASRecBCE(TINY).fit([np.array([], dtype=np.int64)], None, np.eye(3, dtype=np.float32))
