"""Beam search against brute force, equal to the last rank."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from retrieval.decode import beam_search, score_items, top
from retrieval.model import Choices, RetrieverConfig, SequenceModel
from retrieval.trie import Reachable, Trie

SIZES = (5, 4, 3, 4)


def catalog(items: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).choice(np.prod(SIZES), items, replace=False)
    return np.stack(np.unravel_index(rows, SIZES), axis=1).astype(np.int64)


def model_of(codes: np.ndarray, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> SequenceModel:
    """A model with random weights and no content; prefixes too have something to say."""
    torch.manual_seed(seed)
    items = len(codes)
    parts = (torch.zeros(items, 0), torch.from_numpy(codes), sizes, torch.ones(items, dtype=torch.bool))
    model = SequenceModel(RetrieverConfig(dim=8, heads=2), *parts).double().eval()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.prefixes.weight)
    return model


def score_everything(model: SequenceModel, h: torch.Tensor) -> torch.Tensor:
    return score_items(model, h, torch.arange(model.items).expand(len(h), -1), people=4)


def brute_force(model: SequenceModel, h: torch.Tensor, permitted: np.ndarray) -> list[np.ndarray]:
    """Every permitted item by summed log-probability, ties by index: one array of items per person."""
    scores = score_everything(model, h).numpy()
    return [
        np.array(sorted(np.flatnonzero(keep), key=lambda i, row=row: (-row[i], i)), dtype=np.int64)
        for row, keep in zip(scores, permitted, strict=True)
    ]


@pytest.fixture(params=["dense", "sparse"], autouse=True)
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything must hold with a table by code and with ranges alone."""
    monkeypatch.setattr("retrieval.trie.DENSE_CELLS", 1 << 20 if request.param == "dense" else 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_over_everything_ranks_like_brute_force(seed: int) -> None:
    codes = catalog(130, seed)
    model = model_of(codes, seed=seed)
    h = torch.randn(6, 8, dtype=torch.float64)
    items, scores = beam_search(model, h, model.trie.reachable(), k=130, beam=130)
    expected = brute_force(model, h, np.ones((6, 130), bool))
    np.testing.assert_array_equal(items.numpy(), np.stack(expected))
    reference = score_everything(model, h)
    torch.testing.assert_close(scores, reference.gather(1, items))


def test_the_items_share_one_probability_and_a_hidden_item_keeps_its_part() -> None:
    model, h = model_of(catalog(130)), torch.randn(6, 8, dtype=torch.float64) * 5
    torch.testing.assert_close(score_everything(model, h).exp().sum(dim=1), torch.ones(6, dtype=torch.float64))
    hidden = [np.arange(0, 130, 2)] * 6
    items, scores = beam_search(model, h, model.trie.reachable(None, hidden), k=65, beam=130)
    torch.testing.assert_close(scores, score_everything(model, h).gather(1, items))


def test_threads_that_ask_at_once_for_the_first_time_all_find_the_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sessions of a server do that has just been started."""
    model, h = model_of(catalog(130)), torch.randn(1, 8, dtype=torch.float64)
    hashes = Trie.prefix_hashes

    def slowly(trie: Trie, buckets: int) -> list[torch.Tensor]:
        time.sleep(0.3)
        return hashes(trie, buckets)

    def ask(late: float) -> list[int]:
        time.sleep(late)
        return beam_search(model, h, model.trie.reachable(), 10, 20)[0][0].tolist()

    monkeypatch.setattr(Trie, "prefix_hashes", slowly)
    with ThreadPoolExecutor(4) as threads:
        lists = list(threads.map(ask, (0.0, 0.1, 0.2, 0.5)))
    assert lists == [lists[0]] * 4


def test_items_of_one_person_score_as_each_alone() -> None:
    model, h = model_of(catalog(130)), torch.randn(5, 8, dtype=torch.float64)
    items = torch.randint(130, (5, 40), generator=torch.Generator().manual_seed(0))
    together = score_items(model, h, items, people=2)
    alone = model.log_prob_of_codes(h.repeat_interleave(40, dim=0), items.flatten())
    torch.testing.assert_close(together.flatten(), alone)
    assert (together < 0).all()


def test_a_prefix_is_told_from_others_whatever_else_the_catalog_holds() -> None:
    codes = catalog(130)
    small, large = Trie(codes[:60], SIZES), Trie(codes, SIZES)
    for level, (few, many) in enumerate(
        zip(small.prefix_hashes(1 << 30), large.prefix_hashes(1 << 30), strict=True), 1
    ):
        np.testing.assert_array_equal(few[small.path[level][:60]], many[large.path[level][:60]])
        assert len(many.unique()) == large.nodes(level)


@pytest.mark.parametrize("seed", range(4))
def test_with_an_allow_list_and_hidden_items_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = catalog(130, seed)
    model = model_of(codes, seed=seed)
    h = torch.randn(5, 8, dtype=torch.float64)
    allowed = random.random(130) < 0.3
    hidden = [random.integers(130, size=n) for n in (0, 3, 40, 200, 500)]
    permitted = np.repeat(allowed[None], 5, axis=0)
    for row, history in enumerate(hidden):
        permitted[row, history] = False
    items, scores = beam_search(model, h, model.trie.reachable(allowed, hidden), k=130, beam=130)
    for row, expected in enumerate(brute_force(model, h, permitted)):
        np.testing.assert_array_equal(items[row, : len(expected)], expected)
        assert (items[row, len(expected) :] == -1).all()
        assert torch.isinf(scores[row, len(expected) :]).all()


@pytest.mark.parametrize("items", [12, 130])
def test_a_device_that_runs_ahead_finds_the_same(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = catalog(items)
    model, h = model_of(codes), torch.randn(6, 8, dtype=torch.float64)
    random = np.random.default_rng(0)
    reachable = model.trie.reachable(random.random(items) < 0.7, [random.integers(items, size=n) for n in range(6)])
    items_found, scores = beam_search(model, h, reachable, 10, 12)
    monkeypatch.setattr("retrieval.decode.runs_ahead", lambda _: True)
    monkeypatch.setattr("retrieval.decode.WEIGHED_AT_ONCE", 400)
    for found, expected in zip(beam_search(model, h, reachable, 10, 12), (items_found, scores), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_search_never_asks_a_device_what_it_found() -> None:
    """On `meta` there is nothing to be asked: whatever looks into a tensor, or whose shape depends on one, fails."""
    model = model_of(catalog(130))
    reachable = model.trie.reachable(np.arange(130) % 3 > 0, [np.arange(n) for n in range(6)])
    choices = [Choices(each.begin.to("meta"), each.known.to("meta")) for each in model.choices]
    alive = [None if nodes is None else nodes.to("meta") for nodes in reachable.alive]
    dead = [None if pair is None else (pair[0].to("meta"), pair[1].to("meta")) for pair in reachable.dead]
    assert any(pair is not None for pair in dead)
    model = model.to("meta")
    model._choices_known = choices
    h = torch.empty(6, 8, dtype=torch.float64, device="meta")
    items, scores = beam_search(model, h, Reachable(alive, dead), 10, 12)
    assert items.shape == scores.shape == (6, 10)
    assert items.is_meta


def test_ties_go_to_the_lower_item() -> None:
    sizes = (5, 4, 3)
    codes = np.random.default_rng(0).permutation(list(np.ndindex(*sizes)))  # every ID there can be
    model = model_of(codes, sizes)
    for parameter in model.parameters():
        parameter.data.zero_()  # every code is equally likely
    items, _ = beam_search(model, torch.zeros(1, 8, dtype=torch.float64), model.trie.reachable(), k=60, beam=60)
    np.testing.assert_array_equal(items[0], np.arange(60))


@pytest.mark.parametrize("beam", [1, 3, 10])
def test_a_narrow_beam_still_fills_the_list(beam: int) -> None:
    codes = catalog(130)
    model = model_of(codes)
    h = torch.randn(8, 8, dtype=torch.float64) * 5
    allowed = np.zeros(130, bool)
    allowed[np.random.default_rng(0).choice(130, 25, replace=False)] = True
    hidden = [np.flatnonzero(allowed)[:5]] * 8
    items, scores = beam_search(model, h, model.trie.reachable(allowed, hidden), k=20, beam=beam)
    for row in items.numpy():
        assert set(row) == set(np.flatnonzero(allowed)[5:])  # exactly the twenty that are left, each once
    assert (scores[:, 1:] <= scores[:, :-1]).all()


def test_a_wider_beam_never_finds_less() -> None:
    codes = catalog(200)
    model = model_of(codes)
    h = torch.randn(10, 8, dtype=torch.float64) * 3
    totals = [beam_search(model, h, model.trie.reachable(), 5, beam)[1].sum() for beam in (5, 20, 200)]
    assert totals[0] <= totals[1] + 1e-9
    assert totals[1] <= totals[2] + 1e-9


def test_single_precision_scores_agree_with_brute_force() -> None:
    codes = catalog(130)
    model = model_of(codes).float()
    h = torch.randn(6, 8)
    items, scores = beam_search(model, h, model.trie.reachable(), k=130, beam=130)
    reference = score_everything(model, h)
    torch.testing.assert_close(scores, reference.gather(1, items), atol=1e-5, rtol=1e-5)


def child(trie: Trie, level: int, node: int, code: int) -> int:
    """By the ranges, and the same by the dense table where there is one."""
    first, end = trie.first[level][node : node + 2].tolist()
    found = [n for n in range(first, end) if trie.codes[level][n] == code]
    table = trie.dense[level]
    if table is not None:
        assert table[node, code] == (found[0] if found else -1)
    return found[0] if found else -1


def test_trie_leads_every_code_to_its_item_and_nowhere_else() -> None:
    codes = catalog(100)
    trie = Trie(codes, SIZES)
    known = {tuple(code): item for item, code in enumerate(codes.tolist())}
    for code in np.ndindex(*SIZES):
        node = 0
        for level, c in enumerate(code):
            node = child(trie, level, node, c)
            if node < 0:
                break
        assert (-1 if node < 0 else int(trie.leaf_items[node])) == known.get(code, -1)


@pytest.mark.parametrize("shape", [(3, 12800), (2, 1600), (4, 320), (3, 12801), (2, 1615)])
def test_folded_topk_is_topk(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for values in (torch.randn(shape), torch.randint(5, shape).float(), torch.full(shape, -torch.inf)):
        found, at = top(values, 50)
        torch.testing.assert_close(found, values.topk(50, dim=1).values)
        torch.testing.assert_close(values.gather(1, at), found)
        assert all(len(set(row.tolist())) == 50 for row in at)


def test_a_wide_catalog_with_hidden_items_is_searched_as_by_brute_force() -> None:
    """Wide enough for the folded top-k, narrow enough for every item to be scored."""
    sizes, random = (64, 64), np.random.default_rng(0)
    codes = np.stack(np.unravel_index(random.choice(64 * 64, 3000, replace=False), sizes), axis=1).astype(np.int64)
    model, h = model_of(codes, sizes), torch.randn(5, 8, dtype=torch.float64)
    hidden = [random.integers(3000, size=n) for n in (0, 10, 100, 1000, 2000)]
    permitted = np.ones((5, 3000), bool)
    for row, history in enumerate(hidden):
        permitted[row, history] = False
    items, _ = beam_search(model, h, model.trie.reachable(None, hidden), k=50, beam=64)
    for row, expected in enumerate(brute_force(model, h, permitted)):
        np.testing.assert_array_equal(items[row], expected[:50])


def test_many_beams_on_few_nodes_are_scored_like_each_alone() -> None:
    """A hundred people meet on the same first nodes, where prefixes are read once for all; one person does not."""
    model = model_of(catalog(130))
    h = torch.randn(100, 8, dtype=torch.float64) * 3
    items, scores = beam_search(model, h, model.trie.reachable(), k=30, beam=30)
    for row in (0, 41, 99):
        alone = beam_search(model, h[[row]], model.trie.reachable(), k=30, beam=30)
        np.testing.assert_array_equal(alone[0][0], items[row])
        torch.testing.assert_close(alone[1][0], scores[row])
    torch.testing.assert_close(scores, score_everything(model, h).gather(1, items))


def test_nothing_permitted_is_an_empty_list() -> None:
    codes = catalog(20)
    model = model_of(codes)
    h = torch.zeros(2, 8, dtype=torch.float64)
    reachable = model.trie.reachable(np.zeros(20, bool))
    items, scores = beam_search(model, h, reachable, 3, 10)
    assert (items == -1).all()
    assert torch.isinf(scores).all()


def test_a_hundred_thousand_items_build_and_mask_fast() -> None:
    random = np.random.default_rng(0)
    codes = np.unique(random.integers(256, size=(100_000, 4)), axis=0)
    start = time.process_time()
    trie = Trie(codes, (256,) * 4)
    reachable = trie.reachable(random.random(len(codes)) < 0.5, [random.integers(len(codes), size=50)] * 16)
    assert time.process_time() - start < 5  # about half a second on an idle core
    assert [len(mask) for mask in reachable.alive] == [trie.nodes(level) for level in (1, 2, 3, 4)]
    assert trie.nbytes < 100 * len(codes)


def test_shared_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="share a semantic ID"):
        Trie(np.array([[0, 0], [0, 0]]), (2, 2))
