"""What each tokenizer promises beyond the contract: the point of its paper."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_retrieval_tokenizers import clustered, context_of, loss

from retrieval.semantic_ids import Context, make_tokenizer
from retrieval.semantic_ids.autoencoder import Network
from retrieval.semantic_ids.collaborative import cluster_tree, spectral_clusters
from retrieval.semantic_ids.cooccurrence import collaborative_vectors, cooccurrence
from retrieval.semantic_ids.lcrec import uniform_assignment

QUICK = {"epochs": 60, "batch_size": 200, "hidden": 64}


def entropy(codes: np.ndarray) -> float:
    share = np.bincount(codes) / len(codes)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def groups_of_people(
    items: int = 120, people: int = 300, groups: int = 6, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Histories that stay within one of `groups` groups of items, and the group of each item; vectors know nothing."""
    random = np.random.default_rng(seed)
    group = np.arange(items) % groups
    histories = [random.permutation(np.flatnonzero(group == person % groups))[:6] for person in range(people)]
    return histories, group


def purity(labels: np.ndarray, truth: np.ndarray) -> float:
    return sum(np.bincount(truth[labels == label]).max() for label in np.unique(labels)) / len(truth)


# -- content -----------------------------------------------------------------------------------------------------------


def test_residual_kmeans_has_no_dead_codes_and_at_most_a_code_per_four_items() -> None:
    for items in (9, 100, 1500):
        vectors = clustered(items)
        vectors[: items // 3] = vectors[0]  # many duplicates
        tokenizer = make_tokenizer("residual_kmeans")
        codes = tokenizer.fit(vectors, seed=0)
        assert max(tokenizer.sizes) <= max(1, items // 4)
        for level, size in enumerate(tokenizer.sizes):
            assert len(np.unique(codes[:, level])) == size


def test_noise_like_residuals_do_not_gather_on_one_code() -> None:
    """In noise one centroid near the mean is nearer to most points than any other point is."""
    noise = np.random.default_rng(0).standard_normal((3000, 96)).astype(np.float32)
    tokenizer = make_tokenizer("residual_kmeans", levels=3, codebook_size=128)
    codes = tokenizer.fit(noise, seed=0)
    for level, size in enumerate(tokenizer.sizes):
        assert entropy(codes[:, level]) > 0.9 * np.log2(size)


@pytest.mark.parametrize("name", ["residual_kmeans", "product", "rqvae", "fsq", "hybrid", "decoupled"])
def test_more_levels_lose_less(name: str) -> None:
    vectors = clustered(400)
    options: dict[str, Any] = {"codebook_size": 8} | (QUICK if name in ("rqvae", "fsq") else {})
    lost = []
    for levels in (1, 3):
        tokenizer = make_tokenizer(name, levels=levels, **options)
        lost.append(loss(vectors, tokenizer.reconstruct(tokenizer.fit(vectors, 0, context_of(vectors)))))
    assert lost[0] > 1.2 * lost[1]


@pytest.mark.parametrize("gradient", ["rotation", "straight_through"])
def test_rqvae_uses_its_codebooks_whatever_the_gradient(gradient: str) -> None:
    vectors = clustered(600)
    tokenizer = make_tokenizer("rqvae", gradient=gradient, codebook_size=32, **QUICK)
    codes = tokenizer.fit(vectors)
    for level in range(3):
        assert len(np.unique(codes[:, level])) >= 28, "codes died"
    with pytest.raises(ValueError, match="gradient is 'none'"):
        make_tokenizer("rqvae", gradient="none")


@pytest.mark.parametrize("name", ["rqvae", "letter"])  # codebooks by moving averages, and by gradients
def test_a_killed_fit_goes_on_and_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    vectors, context = clustered(200), context_of(clustered(200))
    whole, killed, resumed = (make_tokenizer(name, **QUICK) for _ in range(3))
    codes = whole.fit(vectors, 1, context)

    def die(done: int, total: int) -> None:
        if done == 47:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.fit(vectors, 1, context, checkpoint_dir=tmp_path, progress=die)
    seen: list[int] = []
    again = resumed.fit(vectors, 1, context, checkpoint_dir=tmp_path, progress=lambda done, _: seen.append(done))
    assert seen[0] == 41, "started from the beginning"
    np.testing.assert_array_equal(again, codes)
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "resumed")
    for file in ("tokenizer.json", "tokenizer.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()
    with pytest.raises(ValueError, match="another fit"):
        killed.fit(vectors, 2, context, checkpoint_dir=tmp_path)


def test_fsq_codes_are_cells_of_a_grid() -> None:
    tokenizer = make_tokenizer("fsq", levels=2, codebook_size=64, **QUICK)
    codes = tokenizer.fit(clustered(300))
    assert tokenizer.sizes == (64, 64)  # 8 x 8, table 1 of the paper
    assert len(np.unique(codes)) > 30
    far = np.abs(np.diff(np.stack(np.unravel_index(np.array([0, 63]), (8, 8))), axis=1)).max()
    corners = tokenizer.reconstruct(np.array([[0, 0], [63, 63]]))
    assert far == 7
    assert np.linalg.norm(corners[0] - corners[1]) > 0


def test_the_rotation_of_opq_loses_less_where_the_pieces_are_uneven() -> None:
    random = np.random.default_rng(0)
    spread = np.concatenate([np.full(4, 5.0), np.full(12, 0.1)])  # all there is to know lies in the first piece
    vectors = (random.standard_normal((800, 16)) * spread).astype(np.float32)
    lost = {}
    for rotate in (False, True):
        tokenizer = make_tokenizer("product", levels=4, codebook_size=16, rotate=rotate)
        lost[rotate] = loss(vectors, tokenizer.reconstruct(tokenizer.fit(vectors)))
    assert lost[True] < 0.5 * lost[False]


def test_a_width_that_cannot_be_cut_evenly_is_no_obstacle() -> None:
    vectors = clustered(200)[:, :22]
    tokenizer = make_tokenizer("product", levels=4, codebook_size=32)
    assert tokenizer.reconstruct(tokenizer.fit(vectors)).shape == (200, 22)


def test_lcrec_gives_its_last_codes_out_evenly() -> None:
    vectors = clustered(640)
    tokenizer = make_tokenizer("lcrec", codebook_size=32, **QUICK)
    plain = make_tokenizer("rqvae", codebook_size=32, **QUICK)
    counts = np.bincount(tokenizer.fit(vectors)[:, -1], minlength=32)
    assert counts.max() <= 1.25 * 20
    assert counts.min() >= 0.75 * 20
    assert np.bincount(plain.fit(vectors)[:, -1], minlength=32).std() > 3 * counts.std()


def test_a_uniform_assignment_keeps_to_what_is_near_where_it_can() -> None:
    centers = np.array([[0.0, 0.0], [10.0, 0.0]])
    even = np.repeat(centers, 5, axis=0) + np.random.default_rng(0).standard_normal((10, 2))
    np.testing.assert_array_equal(uniform_assignment(even, centers), np.repeat([0, 1], 5))
    crowd = np.column_stack([np.linspace(0, 4, 10), np.zeros(10)])  # all of them nearer to the first
    np.testing.assert_array_equal(uniform_assignment(crowd, centers), np.repeat([0, 1], 5))


# -- who uses what -----------------------------------------------------------------------------------------------------


def test_cooccurrences_are_counted_both_ways_and_not_with_oneself() -> None:
    counts = cooccurrence([np.array([0, 1, 0]), np.array([1, 2])], 4).toarray()
    np.testing.assert_array_equal(counts, [[0, 2, 0, 0], [2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def test_collaborative_vectors_put_together_what_is_used_together() -> None:
    histories, group = groups_of_people()
    vectors = collaborative_vectors([*histories], 121, 8, seed=0)
    assert not vectors[120].any()  # nobody used it
    np.testing.assert_allclose(np.linalg.norm(vectors[:120], axis=1), 1, atol=1e-5)
    likeness = vectors[:120] @ vectors[:120].T
    same = group[:, None] == group
    assert likeness[same].mean() > 0.8
    assert likeness[~same].mean() < 0.2


def test_spectral_clusters_find_who_belongs_together_at_any_size() -> None:
    histories, group = groups_of_people()
    assert purity(spectral_clusters(cooccurrence(histories, 120), 6, seed=0), group) == 1.0
    histories, group = groups_of_people(items=720, people=1800)  # beyond what is computed exactly
    assert purity(spectral_clusters(cooccurrence(histories, 720), 6, seed=0), group) > 0.95


def test_items_nobody_uses_are_kept_apart_and_dealt_out() -> None:
    histories, _ = groups_of_people()
    codes = cluster_tree(cooccurrence(histories, 160), levels=2, wide=4, seed=0)
    assert (codes[120:, 0] == 3).all()
    assert (codes[:120, 0] < 3).all()
    assert np.bincount(codes[120:, 1]).tolist() == [10, 10, 10, 10]


@pytest.mark.parametrize("name", ["collaborative", "hybrid", "letter", "prorec"])
def test_codes_tell_who_uses_an_item_where_content_hardly_does(name: str) -> None:
    histories, group = groups_of_people(items=240, people=600)
    random = np.random.default_rng(1)
    vectors = (clustered(240) + 0.1 * random.standard_normal((6, 24))[group]).astype(np.float32)
    options: dict[str, Any] = {"levels": 1 if name == "collaborative" else 2, "codebook_size": 16}
    if name in ("letter", "prorec"):
        options |= {**QUICK, "epochs": 100}
    if name == "letter":
        options["collaboration"] = 1.0
    told = purity(make_tokenizer(name, **options).fit(vectors, 0, Context(histories))[:, 0], group)
    plain = purity(make_tokenizer("residual_kmeans", levels=2, codebook_size=16).fit(vectors)[:, 0], group)
    assert plain < 0.45
    assert told > 0.75


def test_the_diversity_of_letter_drives_codewords_apart() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer("letter", levels=1, codebook_size=40, collaboration=0.0, diversity=1.0)
    tokenizer.prepare(clustered(160), Context([np.arange(160)]), 0)  # type: ignore[attr-defined]
    network = Network(24, 8, 32, 24, tokenizer.make_bottleneck(160))  # type: ignore[attr-defined]
    layer = network.bottleneck.layers[0]  # type: ignore[index]
    crowd = torch.ones(40, 32) + 0.3 * torch.randn(40, 32)
    layer._codebook.embed.data = crowd[None].clone()
    codes, no_one = torch.arange(40)[:, None], np.zeros(40, np.int64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for step in range(60):
        tokenizer.begin_epoch(network, step, step)  # type: ignore[attr-defined]
        loss_ = tokenizer.more_loss(network, no_one, torch.zeros(40, 32), codes, torch.zeros(40, 24))  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss_.backward()
        optimizer.step()

    def likeness(codewords: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(codewords, dim=1)
        return float((unit @ unit.T).mean())

    assert likeness(layer.codebook.detach()) < likeness(crowd) - 0.1


def test_sequential_ids_number_items_as_they_are_first_met() -> None:
    vectors = clustered(8)
    tokenizer = make_tokenizer("sequential", levels=3)
    codes = tokenizer.fit(vectors, 0, Context([np.array([5, 2, 5]), np.array([2, 7])]))
    assert tokenizer.sizes == (2, 2, 2)
    numbers = codes @ [4, 2, 1]
    assert np.argsort(numbers).tolist() == [5, 2, 7, 0, 1, 3, 4, 6]


def test_random_ids_are_drawn_by_the_seed_and_number_everyone() -> None:
    vectors = clustered(100)
    first, second = (make_tokenizer("random", levels=2).fit(vectors, seed) for seed in (0, 1))
    assert (first != second).any()
    assert len(np.unique(first, axis=0)) == 100
    with pytest.raises(ValueError, match="cannot number 100 items"):
        make_tokenizer("random", levels=2, codebook_size=9).fit(vectors)


# -- modalities --------------------------------------------------------------------------------------------------------


def test_decoupled_codes_tell_which_modalities_there_are_and_keep_them_apart() -> None:
    vectors = clustered(300)
    known = context_of(vectors).modalities
    tokenizer = make_tokenizer("decoupled", levels=2, codebook_size=16)
    codes = tokenizer.fit(vectors, 0, Context(modalities=known))
    assert tokenizer.sizes == (4, 17, 17, 17, 17)  # which; two of sound; two of words
    lacks = ~known["sound"].any(axis=1)
    assert set(codes[lacks, 0]) == {2}
    assert set(codes[~lacks, 0]) == {3}
    assert (codes[lacks, 1:3] == 0).all()
    assert (codes[~lacks, 1:3] > 0).all()
    other_words = tokenizer.encode(vectors, Context(modalities={**known, "words": known["words"][::-1]}))
    np.testing.assert_array_equal(other_words[:, :3], codes[:, :3])
    assert (other_words[:, 3:] != codes[:, 3:]).any()
    words_alone = tokenizer.encode(vectors, Context(modalities={"words": known["words"]}))
    np.testing.assert_array_equal(words_alone[:, 3:], codes[:, 3:])
    assert set(words_alone[:, 0]) == {2}
    with pytest.raises(ValueError, match="sound, words"):
        tokenizer.encode(vectors)
    with pytest.raises(ValueError, match=r"\[299, 12\]"):
        tokenizer.encode(vectors, Context(modalities={"words": known["words"][1:]}))


def test_every_history_code_of_hybrid_ids_comes_first() -> None:
    histories, group = groups_of_people()
    vectors = clustered(120)
    codes = make_tokenizer("hybrid", levels=3, codebook_size=6).fit(vectors, 0, Context(histories))
    assert purity(codes[:, 0], group) == 1.0
    within = [purity(codes[:, level], group) for level in (1, 2)]
    assert max(within) < 0.6


def test_sequential_neighbours_share_their_first_code() -> None:
    histories, _ = groups_of_people()
    codes = make_tokenizer("sequential", levels=2).fit(clustered(120), 0, Context(histories))
    pairs = np.concatenate([list(pairwise(history)) for history in histories])
    shared = (codes[pairs[:, 0], 0] == codes[pairs[:, 1], 0]).mean()
    assert shared > 1.5 / len(np.unique(codes[:, 0]))
