"""TIGER: the search over an encoder-decoder against `generate` of transformers and against brute force; training."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.baselines.t5 import T5Speller
from retrieval.baselines.tiger import FIRST_CODE, PERSON, Tiger, TigerConfig, t5_of
from retrieval.semantic_ids import make_tokenizer
from retrieval.trie import Trie

SIZES = (6, 5, 4, 5)
OFFSETS = tuple(int(o) for o in FIRST_CODE + np.cumsum([0, *SIZES[:-1]]))
TINY = TigerConfig(dim=16, layers=2, heads=2, head_dim=8, feed_forward=32, max_history=6, epochs=3, batch_size=64)
ITEMS = 150


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    rows = np.random.default_rng(0).choice(np.prod(SIZES), ITEMS, replace=False)
    return np.stack(np.unravel_index(rows, SIZES), axis=1).astype(np.int64)


def model_of(scale: float):
    """Random weights; a larger scale makes its probabilities peaky."""
    torch.manual_seed(1)
    model = t5_of(TINY, FIRST_CODE + sum(SIZES)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.shared.weight.data *= scale
    return model


def sentences(codes: np.ndarray, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros(len(lengths), 1 + 4 * max(lengths), dtype=torch.long)
    tokens[:, 0] = 1
    for row, length in enumerate(lengths):
        items = np.random.default_rng(row).integers(ITEMS, size=length)
        tokens[row, 1 : 1 + 4 * length] = torch.from_numpy(codes[items] + np.array(OFFSETS)).flatten()
    return tokens, tokens > 0


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_lists_and_scores_are_those_of_generate(
    codes: np.ndarray, scale: float, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sparse:
        monkeypatch.setattr("retrieval.trie.DENSE_CELLS", 0)
    model, trie = model_of(scale), Trie(codes, SIZES)
    tokens, mask = sentences(codes, (6, 2, 5, 0, 1))
    children: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for code in (codes + np.array(OFFSETS)).tolist():
        for level in range(4):
            children[tuple(code[:level])].add(code[level])
    with torch.no_grad():
        theirs = model.generate(
            input_ids=tokens,
            attention_mask=mask.long(),
            num_beams=12,
            num_return_sequences=12,
            max_new_tokens=4,
            length_penalty=0.0,
            early_stopping="never",
            prefix_allowed_tokens_fn=lambda _, spelled: sorted(children[tuple(spelled[1:].tolist())]),
            return_dict_in_generate=True,
            output_scores=True,
        )
    item_of = {tuple(code): item for item, code in enumerate((codes + np.array(OFFSETS)).tolist())}
    expected = np.array([item_of[tuple(row)] for row in theirs.sequences[:, 1:].tolist()]).reshape(5, 12)
    items, scores = T5Speller(model, OFFSETS).search(tokens, mask, trie, trie.reachable(), 12, 12)
    np.testing.assert_array_equal(items.numpy(), expected)
    torch.testing.assert_close(scores, theirs.sequences_scores.view(5, 12), atol=1e-4, rtol=1e-5)


def test_a_beam_over_everything_is_brute_force_over_what_is_permitted(codes: np.ndarray) -> None:
    model, trie = model_of(2.0), Trie(codes, SIZES)
    tokens, mask = sentences(codes, (6, 2, 5))
    random = np.random.default_rng(3)
    allowed = random.random(ITEMS) < 0.5
    hidden = [random.integers(ITEMS, size=n) for n in (0, 30, 300)]
    items, scores = T5Speller(model, OFFSETS).search(tokens, mask, trie, trie.reachable(allowed, hidden), ITEMS, ITEMS)
    targets = torch.from_numpy(codes + np.array(OFFSETS))
    for row in range(3):
        with torch.no_grad():
            logits = model(
                input_ids=tokens[[row]].expand(ITEMS, -1),
                attention_mask=mask[[row]].long().expand(ITEMS, -1),
                labels=targets,
            ).logits
        log_p = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum(dim=(1, 2)).numpy()
        permitted = np.setdiff1d(np.flatnonzero(allowed), hidden[row])
        count = len(permitted)
        assert set(items[row, :count].tolist()) == set(permitted)
        assert (items[row, count:] == -1).all()
        np.testing.assert_allclose(scores[row, :count], np.sort(log_p[permitted])[::-1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scores[row, :count], log_p[items[row, :count]], rtol=1e-4, atol=1e-4)


def test_the_search_never_asks_a_device_what_it_found(codes: np.ndarray) -> None:
    """On `meta` there is nothing to be asked: whatever looks into a tensor, or whose shape depends on one, fails."""
    trie = Trie(codes, SIZES).to("meta")
    tokens, mask = (each.to("meta") for each in sentences(codes, (6, 2, 5)))
    items, scores = T5Speller(model_of(1.0).to("meta"), OFFSETS).search(tokens, mask, trie, trie.reachable(), 10, 20)
    assert items.shape == scores.shape == (3, 10)
    assert items.is_meta


def test_a_feed_forward_it_does_not_compute_is_refused() -> None:
    model = model_of(1.0)
    model.config.feed_forward_proj = "gated-gelu"
    with pytest.raises(ValueError, match="gated-gelu"):
        T5Speller(model, OFFSETS)


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_undisturbed(world, tmp_path: Path) -> None:
    def fitted(seed: int = 5, config: TigerConfig = TINY, **options) -> dict[str, torch.Tensor]:
        tiger = Tiger(config, ids=world.ids, validation=(world.histories[:9], world.targets[:9]), **options)
        tiger.fit(world.histories[:40], None, world.vectors, seed=seed)
        return tiger.model.state_dict()

    def kill(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise Killed

    undisturbed = fitted()
    with pytest.raises(Killed):
        fitted(checkpoint_dir=tmp_path, progress=kill)
    told: list[int] = []
    resumed = fitted(checkpoint_dir=tmp_path, progress=lambda done, _: told.append(done))
    assert told == [3]
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[name]), name
    assert not torch.equal(fitted(seed=6)["shared.weight"], undisturbed["shared.weight"])
    with pytest.raises(ValueError, match="another run"):
        fitted(seed=6, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="another run"):
        fitted(config=replace(TINY, dropout=0.2), checkpoint_dir=tmp_path)


def test_ids_are_those_of_the_tokenizer_that_was_named(world) -> None:
    config = replace(TINY, tokenizer="random", epochs=1)
    tiger = Tiger(config)
    tiger.fit(world.histories[:40], None, world.vectors, seed=3)
    expected = make_tokenizer("random").fit(world.vectors, 3)
    np.testing.assert_array_equal(tiger.tokens[:, :-1] - torch.tensor(tiger.offsets[:-1]), expected)


def test_what_the_encoder_reads_ends_with_the_last_code_and_is_padded(world) -> None:
    tiger = Tiger(replace(TINY, epochs=1), ids=world.ids)
    tiger.fit(world.histories[:40], None, world.vectors)
    tokens, mask = tiger._sentences([np.array([3, 7]), np.array([], dtype=np.int64), np.array([5])])
    codes = (torch.from_numpy(world.ids.codes) + torch.tensor(tiger.offsets)).tolist()
    assert tokens.tolist()[0] == [PERSON, *codes[3], *codes[7]]
    assert [row[row_mask].tolist() for row, row_mask in zip(tokens[1:], mask[1:], strict=True)] == [
        [PERSON],
        [PERSON, *codes[5]],
    ]


def test_wrong_arguments_are_named(world) -> None:
    with pytest.raises(ValueError, match="120 semantic IDs but 119 vectors"):
        Tiger(TINY, ids=world.ids).fit([np.array([1, 2])], None, world.vectors[1:])
    with pytest.raises(ValueError, match="no history has two events"):
        Tiger(TINY, ids=world.ids).fit([np.array([1]), np.array([2])], None, world.vectors)
