from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.model import RetrieverConfig, SequenceModel, sampled_softmax
from retrieval.ranking import recall_and_ndcg
from retrieval.retriever import Retriever
from retrieval.semantic_ids import assign_unique
from retrieval.training import batches, train_retriever


class Killed(Exception):
    pass


def weights(retriever: Retriever) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in retriever.model.state_dict().items()}


def assert_same(first: Retriever, second: Retriever) -> None:
    assert first.config == second.config
    for name, array in weights(first).items():
        np.testing.assert_array_equal(array, weights(second)[name], err_msg=name)


@pytest.mark.parametrize("full_softmax_up_to", [5000, 10])
@pytest.mark.parametrize("with_validation", [True, False])
def test_killed_and_resumed_equals_undisturbed(
    world, small: RetrieverConfig, tmp_path: Path, full_softmax_up_to: int, with_validation: bool
) -> None:
    config = replace(small, full_softmax_up_to=full_softmax_up_to, negatives=20, epochs=4, code_epochs=2)
    validation = (world.histories[:40], world.targets[:40]) if with_validation else None
    arguments = (world.histories, world.vectors, world.ids, config)

    def kill_after(epoch: int):
        def progress(done: int, total: int) -> None:
            assert total == 6
            if done == epoch:
                raise Killed

        return progress

    undisturbed = train_retriever(*arguments, validation=validation, seed=5)
    for epoch in (1, 3, 5):
        with pytest.raises(Killed):
            train_retriever(
                *arguments, validation=validation, seed=5, checkpoint_dir=tmp_path, progress=kill_after(epoch)
            )
    epochs: list[int] = []
    resumed = train_retriever(
        *arguments, validation=validation, seed=5, checkpoint_dir=tmp_path, progress=lambda done, _: epochs.append(done)
    )
    assert epochs == [6]
    assert_same(undisturbed, resumed)
    assert_same(undisturbed, train_retriever(*arguments, validation=validation, seed=5, checkpoint_dir=tmp_path))


def test_another_seed_gives_other_weights_and_leaves_the_callers_generator_alone(world, small) -> None:
    config = replace(small, epochs=1)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = train_retriever(world.histories, world.vectors, world.ids, config, seed=0)
    assert torch.equal(torch.rand(3), expected)
    second = train_retriever(world.histories, world.vectors, world.ids, config, seed=1)
    assert not np.array_equal(weights(first)["backbone.start"], weights(second)["backbone.start"])


def test_a_checkpoint_of_another_run_is_refused(world, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small, epochs=1)
    train_retriever(world.histories, world.vectors, world.ids, config, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="another run"):
        train_retriever(world.histories[1:], world.vectors, world.ids, config, checkpoint_dir=tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="another run"):
        train_retriever(world.histories, world.vectors, world.ids, config, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("cut", [10, 3])
def test_validation_keeps_the_best_epoch_and_stops(world, small, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    """Learning far too fast soon makes things worse; what is kept is what validation liked best."""
    config = replace(small, epochs=30, patience=2, learning_rate=0.05, choose_at=cut)
    validation = (world.histories[:50], world.targets[:50])
    with caplog.at_level("INFO", logger="retrieval.training"):
        best = train_retriever(world.histories, world.vectors, world.ids, config, validation=validation)
    seen = [float(message.split()[-1]) for message in caplog.messages if message.startswith("items")]
    assert len(seen) < 30
    assert max(seen) == seen[-3] > seen[-1]  # two epochs of patience after the best
    kept = recall_and_ndcg(best.recommend(validation[0], cut, mode="dense")[0], validation[1])[1]
    assert kept == pytest.approx(max(seen), abs=1e-4)


def test_every_event_is_in_one_epoch_once_and_in_order() -> None:
    histories = [np.arange(start, start + n) for start, n in ((0, 3), (100, 50), (1000, 137), (5000, 51))]
    for epoch in range(5):
        seen = np.concatenate([b[b >= 0] for b in batches(histories, 50, 2, seed=0, epoch=epoch)])
        np.testing.assert_array_equal(np.sort(seen), np.concatenate(histories))
        for batch in batches(histories, 50, 2, seed=0, epoch=epoch):
            assert batch.shape[1] <= 50
            for row in batch:
                assert (np.diff(row[row >= 0]) == 1).all()
                assert (np.diff((row < 0).astype(int)) >= 0).all()
    first, again, other = ([b.tolist() for b in batches(histories, 50, 2, seed=0, epoch=epoch)] for epoch in (0, 0, 1))
    assert first == again != other


def test_no_state_has_read_what_it_predicts(world, small) -> None:
    torch.manual_seed(0)
    retriever = train_retriever(world.histories, world.vectors, world.ids, replace(small, epochs=1))
    model, embeddings = retriever.model, retriever.model.item_embeddings()
    sequence = torch.from_numpy(world.histories[0][None, :4])
    changed = sequence.clone()
    changed[0, 2] = (changed[0, 2] + 60) % 120
    with torch.no_grad():
        before, after = model.states(sequence, embeddings), model.states(changed, embeddings)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_padding_changes_nothing(world, small) -> None:
    model = train_retriever(world.histories, world.vectors, world.ids, replace(small, epochs=1)).model.eval()
    short, long = (torch.from_numpy(h[None, :6]) for h in (world.histories[0][:4], world.histories[1][:6]))
    padded = torch.full((2, 6), -1)
    padded[0, : short.shape[1]], padded[1, : long.shape[1]] = short, long
    with torch.no_grad():
        apart = [model(sequence, None) * sequence.shape[1] for sequence in (short, long)]
        together = model(padded, None) * (short.shape[1] + long.shape[1])
    torch.testing.assert_close(together, apart[0] + apart[1])


def test_sampled_softmax_is_on_average_close_to_the_full_one() -> None:
    torch.manual_seed(0)
    h, embeddings, target = torch.randn(16, 8), torch.randn(200, 8) * 0.5, torch.randint(200, (16,))
    full = torch.nn.functional.cross_entropy(h @ embeddings.T, target)
    sampled = torch.stack([sampled_softmax(h, embeddings, target, torch.randint(200, (100,)), 200) for _ in range(200)])
    assert sampled.mean().item() == pytest.approx(full.item(), rel=0.03)


def test_items_never_seen_in_training_are_judged_by_content_and_codes_alone(world, small) -> None:
    model = train_retriever(world.histories, world.vectors, world.ids, small).model
    unseen = np.setdiff1d(np.arange(120), np.concatenate(world.histories[:3]))[:5]
    trained = train_retriever(world.histories[:3], world.vectors, world.ids, small).model
    with torch.no_grad():
        tower, rows = trained.tower, torch.from_numpy(unseen)
        expected = tower.content(tower.vectors[rows]) + sum(
            e(tower.codes[rows, level]) for level, e in enumerate(tower.code_embeddings)
        )
        torch.testing.assert_close(tower(rows), expected)
        seen = torch.from_numpy(world.histories[0][:2])
        assert not torch.allclose(model.tower(seen), model.tower(seen) - model.tower.residual(seen))


def test_wrong_arguments_are_named(world, small) -> None:
    with pytest.raises(ValueError, match="history 1 holds item"):
        train_retriever([np.array([1]), np.array([999])], world.vectors, world.ids, small)
    with pytest.raises(ValueError, match="every history is empty"):
        train_retriever([np.array([], dtype=np.int64)], world.vectors, world.ids, small)
    with pytest.raises(ValueError, match="119 vectors but 120 semantic IDs"):
        train_retriever(world.histories, world.vectors[1:], world.ids, small)
    with pytest.raises(ValueError, match="items="):
        train_retriever(world.histories, None, None, small)
    with pytest.raises(ValueError, match="multiple of heads"):
        train_retriever(world.histories, world.vectors, world.ids, replace(small, heads=5))


class TestRetriever:
    @pytest.fixture(scope="class")
    def retriever(self, world, small) -> Retriever:
        return train_retriever(
            world.histories, world.vectors, world.ids, small, validation=(world.histories, world.targets)
        )

    def test_what_is_saved_comes_back(self, retriever: Retriever, world, tmp_path: Path) -> None:
        retriever.save_pretrained(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
        loaded = Retriever.from_pretrained(tmp_path)
        assert_same(retriever, loaded)
        for before, after in zip(
            retriever.recommend(world.histories, 10), loaded.recommend(world.histories, 10), strict=True
        ):
            np.testing.assert_array_equal(before, after)
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            Retriever.from_pretrained(tmp_path / "nowhere")
        (tmp_path / "config.json").write_text('{"config": {"dimension": 3}, "sizes": []}')
        with pytest.raises(ValueError, match="train it again"):
            Retriever.from_pretrained(tmp_path)

    def test_a_new_item_is_recommended_beside_its_like_without_training(self, retriever: Retriever, world) -> None:
        twin = world.vectors[[20]]
        new = assign_unique(world.tokenizer.encode(twin), twin, world.tokenizer, taken=world.ids)
        grown = retriever.with_items(twin, new.codes)
        assert (retriever.items, grown.items) == (120, 121)
        history = [np.array([16, 18, 22, 25, 27])]  # the twin's cluster
        for mode in ("dense", "fused"):
            assert 120 in grown.recommend(history, 40, mode=mode)[0][0], mode
        # Codes alone can reach it, but have never seen its last code as a target: the dense head is what finds it.
        assert 120 in grown.recommend(history, 116, mode="codes", beam=121)[0][0]
        lost = retriever.score_all(history)[0] - grown.score_all(history)[0][:120]
        np.testing.assert_allclose(lost, lost[0], atol=1e-5)  # the old ones make room alike
        with pytest.raises(ValueError, match="share a semantic ID"):
            retriever.with_items(twin, world.ids.codes[[20]]).recommend(history, 3, mode="codes")
        with pytest.raises(ValueError, match="this model reads"):
            retriever.with_items(np.ones((1, 3)), new.codes)

    def test_the_fused_score_is_the_weighted_sum_of_both_heads(self, retriever: Retriever, world) -> None:
        items, fused = retriever.recommend(world.histories[:5], 8, mode="fused", beam=120)
        dense = np.take_along_axis(retriever.score_all(world.histories[:5]), items, axis=1)
        ranked, log_p = retriever.recommend(world.histories[:5], 120, mode="codes", beam=120, hide_history=False)
        codes = np.take_along_axis(log_p, np.argsort(ranked, axis=1), axis=1)
        expected = dense + retriever.config.fusion_weight * np.take_along_axis(codes, items, axis=1)
        np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("mode", ["dense", "codes", "fused"])
    @pytest.mark.parametrize("k", [10, 130])
    def test_lists_are_the_same_where_the_device_runs_ahead(
        self, retriever: Retriever, world, mode, k: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        people, allowed = world.histories[:20], np.random.default_rng(0).random(120) < 0.7
        here = retriever.recommend(people, k, mode=mode, allowed=allowed)
        monkeypatch.setattr("retrieval.decode.runs_ahead", lambda _: True)
        monkeypatch.setattr("retrieval.retriever.runs_ahead", lambda _: True)
        items, scores = retriever.recommend(people, k, mode=mode, allowed=allowed)
        np.testing.assert_array_equal(items, here[0])
        np.testing.assert_allclose(scores, here[1], rtol=1e-5)

    def test_dense_scores_are_log_probabilities_over_the_catalog(self, retriever: Retriever, world) -> None:
        scores = retriever.score_all(world.histories[:4])
        assert scores.shape == (4, 120)
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-4)

    def test_only_the_recent_past_is_read(self, retriever: Retriever, world) -> None:
        recent = world.histories[0][-8:]
        long = np.concatenate([np.arange(60), recent])
        np.testing.assert_allclose(retriever.score_all([long]), retriever.score_all([recent]), atol=1e-5)

    def test_wrong_arguments_are_named(self, retriever: Retriever, world, small) -> None:
        with pytest.raises(ValueError, match="mode is 'best'"):
            retriever.recommend(world.histories, 3, mode="best")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="k is 0"):
            retriever.recommend(world.histories, 0)
        bare = train_retriever(world.histories, None, None, replace(small, epochs=1), items=120)
        with pytest.raises(ValueError, match="trained without"):
            bare.recommend(world.histories, 3, mode="codes")


def test_the_model_reads_codes_and_vectors_and_learns_to_spell(world, small) -> None:
    """Codes alone must find the clusters that a person moves in, and an untrained decoder must not."""
    trained = train_retriever(world.histories, world.vectors, world.ids, small)
    fresh = SequenceModel(
        small, trained.model.tower.vectors, trained.model.tower.codes, world.ids.sizes, trained.model.tower.seen
    )
    arguments = {"mode": "codes", "hide_history": False}
    good, bad = (
        recall_and_ndcg(r.recommend(world.histories, 20, **arguments)[0], world.targets)[0]
        for r in (trained, Retriever(fresh))
    )
    assert good > 0.3
    assert good > 1.5 * bad


def test_a_query_is_answered_by_the_same_decoder_with_and_without_a_history(world, small) -> None:
    """Words for an item (its vector, bent by a bridge that loses a third of it) bring it up, in every mode."""
    random = np.random.default_rng(3)
    said = world.vectors + 0.35 * random.standard_normal(world.vectors.shape) / 4
    said = (said / np.linalg.norm(said, axis=1, keepdims=True)).astype(np.float32)
    config = replace(small, epochs=30, code_epochs=15, queries=1.0)
    retriever = train_retriever(world.histories, world.vectors, world.ids, config, steers={"text": said})
    people, nobody = world.histories[:60], [np.empty(0, np.int64)] * 60
    for mode in ("dense", "codes", "fused"):
        asked = [
            retriever.recommend(histories, 10, mode=mode, about=said[world.targets[:60]], hide_history=False)[0]
            for histories in (people, nobody)
        ]
        unasked = retriever.recommend(people, 10, mode=mode, hide_history=False)[0]
        before = recall_and_ndcg(unasked, world.targets[:60])[0]
        for items in asked:
            assert recall_and_ndcg(items, world.targets[:60])[0] > before + 0.3, mode


def test_queries_a_model_cannot_hear_are_refused(world, small) -> None:
    deaf = train_retriever(world.histories, world.vectors, world.ids, replace(small, epochs=1, queries=0.0))
    assert not deaf.hears
    with pytest.raises(ValueError, match="without queries"):
        deaf.recommend(world.histories[:2], 3, about=world.vectors[:2])
    hears = train_retriever(world.histories, world.vectors, world.ids, replace(small, epochs=1))
    for wrong in (world.vectors[:1], world.vectors[:2, :4], np.full((2, 16), np.nan)):
        with pytest.raises(ValueError, match="about"):
            hears.recommend(world.histories[:2], 3, about=wrong)
