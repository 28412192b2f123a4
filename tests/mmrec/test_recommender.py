"""The facade over the small, really built workspace."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmrec import Recommender
from mmrec.config import Recipe
from mmrec.errors import MmrecError, StaleArtifact
from mmrec.workspace import Workspace

MODES = ("fused", "dense", "codes")


@pytest.fixture(scope="module")
def opened(tiny_workspace: Path) -> Recommender:
    return Recommender.load(tiny_workspace)


@pytest.fixture(scope="module")
def likes(opened: Recommender) -> list[str]:
    return [item.item_id for item in opened.starters(4)]


def copy_of(workspace: Path, to: Path) -> Path:
    """Its artifacts without the sources, which the copy reads where they are."""
    return Path(shutil.copytree(workspace, to, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock")))


def ids(items) -> list[str]:
    return [item.item_id for item in items]


def near(opened: Recommender, items, vector: np.ndarray) -> float:
    """Mean cosine of items to a vector."""
    return float(np.mean(opened.vectors[[opened.catalog.index[i] for i in ids(items)]] @ vector))


# -- recommend ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_everything_recommended_exists_and_is_new_to_the_person(opened: Recommender, mode: str) -> None:
    for user in opened.histories.user_ids[:40]:
        met = {item for item, _ in opened.history(user)}
        found = ids(opened.recommend(user, k=10, mode=mode))
        assert set(found) <= set(opened.catalog.item_ids)
        assert not met & set(found)
        assert len(found) == len(set(found)) == min(10, len(opened.catalog) - len(met))


def test_asked_for_more_than_there_is_gives_all_there_is(opened: Recommender, likes: list[str]) -> None:
    for options in ({}, {"text": "music"}, {"exploration": 1.0}):
        found = ids(opened.recommend(likes=likes, k=1000, **options))
        assert sorted(found) == sorted(set(opened.catalog.item_ids) - set(likes))


def test_no_two_items_share_a_semantic_id(opened: Recommender) -> None:
    codes = [opened.similar(item, 1)[0].code for item in opened.catalog.item_ids[:3]]
    assert all(len(code) == opened.ids.codes.shape[1] for code in codes)
    assert len({tuple(code) for code in opened.ids.codes.tolist()}) == len(opened.catalog)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options", [{}, {"text": "a dance tune"}, {"exploration": 2.0}], ids=["plain", "words", "wild"]
)
def test_only_what_is_allowed(opened: Recommender, likes: list[str], mode: str, options: dict) -> None:
    allowed = opened.catalog.item_ids[::9]
    found = ids(opened.recommend(likes=likes, k=20, mode=mode, allowed=allowed, **options))
    assert set(found) == set(allowed) - set(likes)
    assert opened.recommend(likes=likes, allowed=[], **options) == []


def test_the_modes_differ_and_scores_fall(opened: Recommender) -> None:
    user = opened.histories.user_ids[3]
    lists = {mode: opened.recommend(user, k=10, mode=mode) for mode in MODES}
    assert ids(lists["dense"]) != ids(lists["codes"])
    for items in lists.values():
        scores = [item.score for item in items]
        assert scores == sorted(scores, reverse=True)
    with pytest.raises(ValueError, match="'sideways'"):
        opened.recommend(user, mode="sideways")


@pytest.mark.parametrize(
    "who",
    [
        {"user": "nobody"},
        {"user": ""},
        {"likes": ["no-such-item"]},
        {"dislikes": ["no-such-item"]},
        {"likes": ["pic-poodle"], "allowed": ["no-such-item"]},
        {"likes": ["pic-poodle"], "dislikes": ["pic-poodle"]},
    ],
)
def test_who_or_what_is_unknown_is_told(opened: Recommender, who: dict) -> None:
    with pytest.raises(MmrecError, match=r"(the log has no user|the catalog has no item|liked and disliked).*\n.*mend"):
        opened.recommend(**who)
    if "allowed" not in who:
        with pytest.raises(MmrecError):
            opened.imagine(**who)


def test_somebody_new_is_answered_at_once_and_the_likes_matter(opened: Recommender) -> None:
    music = [item for item in opened.catalog.item_ids if not item.startswith("pic-")]
    faces = [item for item in opened.catalog.item_ids if item.endswith("-face")]
    assert opened.recommend(k=5), "nothing is known: still an answer"
    assert ids(opened.recommend(likes=music[:4])) != ids(opened.recommend(likes=faces[:4]))
    both = opened.recommend(opened.histories.user_ids[0], likes=[*music[:2]], k=10)
    assert not set(ids(both)) & set(music[:2])


def test_what_is_said_now_overrules_the_log(opened: Recommender) -> None:
    user = next(
        user for user in opened.histories.user_ids if any(preference > 0 for _, preference in opened.history(user))
    )
    liked = next(item for item, preference in opened.history(user) if preference > 0)
    items, preferences = opened._taste(user, (), [liked])
    row = opened.catalog.index[liked]
    assert preferences[items == row].tolist() == [-1.0]
    assert len(items) == len(opened.history(user))


def test_dislikes_push_away_what_is_like_them(opened: Recommender, likes: list[str]) -> None:
    disliked = [item for item in opened.catalog.item_ids[::6] if item not in likes]
    before = [near(opened, opened.recommend(likes=likes), opened.vectors[opened.catalog.index[d]]) for d in disliked]
    after = [
        near(opened, opened.recommend(likes=likes, dislikes=[d]), opened.vectors[opened.catalog.index[d]])
        for d in disliked
    ]
    assert all(a < b for a, b in zip(after, before, strict=True))
    assert opened.recommend(likes=likes, dislikes=disliked[:1], avoid=0.0)[0].score == pytest.approx(
        opened.recommend(likes=likes, allowed=set(opened.catalog.item_ids) - {disliked[0]})[0].score
    ), "with the dial at 0 a dislike hides itself and does no more"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("pastry, bread, food", "pic-croissant"), ("a tool for the house", "pic-hammer"), ("a dog", "pic-poodle")],
)
def test_words_raise_what_fits_them(opened: Recommender, likes: list[str], text: str, wanted: str) -> None:
    plain, said = (ids(opened.recommend(likes=likes, k=70, text=t)) for t in ("", text))
    assert said.index(wanted) < plain.index(wanted) or said.index(wanted) == 0
    assert f"fits “{text}”" in opened.recommend(likes=likes, text=text)[0].reason


def test_the_more_words_count_the_nearer_to_them(opened: Recommender, likes: list[str]) -> None:
    closeness = np.array([
        [near(opened, opened.recommend(likes=likes, text=text, words=words), opened.steer("text", text))
         for words in (0, 1, 4)]
        for text in ("pastry, bread, food", "a tool for the house", "a dog", "a train", "something to wear")
    ])  # fmt: skip
    assert (np.diff(closeness, axis=1) >= 0).all(), "of equal lists none is nearer"
    assert (np.diff(closeness.mean(axis=0)) > 0).all()


def test_exploration_is_drawn_by_seed(opened: Recommender, likes: list[str]) -> None:
    def ask(exploration: float, seed: int) -> list[str]:
        return ids(opened.recommend(likes=likes, exploration=exploration, seed=seed))

    assert (
        ask(1.0, 1)
        == ask(1.0, 1)
        == ids(Recommender.load(opened.workspace.root).recommend(likes=likes, exploration=1.0, seed=1))
    )
    assert len({tuple(ask(1.0, seed)) for seed in range(8)}) > 4
    assert ask(0.0, 1) == ask(0.0, 2) == ids(opened.recommend(likes=likes))
    best = set(ask(0.0, 0))
    kept = [np.mean([len(best & set(ask(wild, seed))) for seed in range(12)]) for wild in (0.1, 1.0, 10.0)]
    assert kept[0] > kept[1] > kept[2]


# -- search ------------------------------------------------------------------------------------------------------------


def test_search_by_words_finds_titles(opened: Recommender) -> None:
    titles = opened.catalog.titles[::4]
    places = [ids(opened.search(title, k=72)).index(opened.catalog.item_ids[4 * i]) for i, title in enumerate(titles)]
    assert np.mean(np.array(places) < 3) > 0.8, places


def test_search_by_its_own_picture_or_sound_finds_the_item(opened: Recommender) -> None:
    rows = np.random.default_rng(0).permutation(len(opened.catalog))
    pictures = [row for row in rows if opened.catalog.image_path(row)][:6]
    sounds = [row for row in rows if opened.catalog.audio_path(row)][:4]
    for row in pictures:
        assert opened.catalog.item_ids[row] in ids(opened.search(image=opened.catalog.image_path(row), k=3))
    for row in sounds:
        assert opened.catalog.item_ids[row] in ids(opened.search(audio=opened.catalog.audio_path(row), k=3))


def test_words_are_answered_by_the_decoder_too(opened: Recommender) -> None:
    """A second of training is enough to spell what was asked for sooner than by chance (35.5 of 72)."""
    titles = opened.catalog.titles[::3]
    found = [ids(opened.search(title, k=72, by="codes")) for title in titles]
    places = [(found[i] + [opened.catalog.item_ids[3 * i]]).index(opened.catalog.item_ids[3 * i]) for i in range(24)]
    assert np.mean(places) < 24, places
    assert all(len(set(each)) == len(each) for each in found)
    with pytest.raises(MmrecError, match="search by"):
        opened.search("poodle", by="magic")  # type: ignore[arg-type]


def test_what_is_said_changes_what_comes_next(opened: Recommender) -> None:
    """Without any weighing of words afterwards: the model itself hears them."""
    liked = opened.catalog.item_ids[:3]
    plain, said = (ids(opened.recommend(likes=liked, k=72, text=text, words=0.0)) for text in ("", "music"))
    clips = {opened.catalog.item_ids[row] for row in range(72) if opened.catalog.audio_path(row)}
    place = [np.mean([row for row, item in enumerate(found) if item in clips]) for found in (plain, said)]
    assert place[1] < place[0]


def test_search_takes_one_thing_that_can_be_read(opened: Recommender, tmp_path: Path) -> None:
    picture = opened.catalog.image_path(0)
    for given in ({}, {"text": "x", "image": picture}, {"text": ""}):
        with pytest.raises(MmrecError, match="exactly one"):
            opened.search(**given)
    (tmp_path / "empty.png").write_bytes(b"")
    for file, told in ((tmp_path / "empty.png", "empty"), (tmp_path / "absent.png", "no such file")):
        with pytest.raises(ValueError, match=told):
            opened.search(image=file)


def test_similar_leaves_itself_out(opened: Recommender) -> None:
    found = opened.similar("pic-poodle", 5)
    assert len(found) == 5
    assert "pic-poodle" not in ids(found)
    everything = opened.vectors @ opened.vectors[opened.catalog.index["pic-poodle"]]
    everything[opened.catalog.index["pic-poodle"]] = -2
    assert found[0].item_id == opened.catalog.item_ids[int(everything.argmax())]


# -- imagine and create ------------------------------------------------------------------------------------------------


def test_dreams_are_the_same_for_the_same_seed_only(opened: Recommender, likes: list[str]) -> None:
    def dream(seed: int) -> np.ndarray:
        return np.stack([d.vector for d in opened.imagine(likes=likes, n=5, seed=seed).dreams])

    np.testing.assert_array_equal(dream(3), dream(3))
    assert np.abs(dream(3) - dream(4)).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(dream(3), axis=1), 1, atol=1e-5)
    assert len(np.unique(dream(3).round(4), axis=0)) == 5


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (8, 2)])
def test_as_many_dreams_and_items_as_asked_for(opened: Recommender, n: int, k: int) -> None:
    user = opened.histories.user_ids[1]
    met = {item for item, _ in opened.history(user)}
    imagined = opened.imagine(user, n=n, k=k)
    assert len(imagined.dreams) == n
    assert len(imagined.items) == k
    shown = [*imagined.items, *(item for dream in imagined.dreams for item in dream.items)]
    assert set(ids(shown)) <= set(opened.catalog.item_ids) - met
    assert len(set(ids(imagined.items))) == k
    for dream in imagined.dreams:
        assert 0 <= dream.novelty <= 1
        assert dream.items[0].score == max(item.score for item in dream.items)
        best = opened.vectors[opened.catalog.index[dream.items[0].item_id]] @ dream.vector
        assert dream.items[0].score == pytest.approx(best, abs=1e-4)


def pull(opened: Recommender, toward: np.ndarray, likes: list[str], **steer: object) -> float:
    """Mean cosine of dreams to a vector, over seeds."""
    dreams = [d for seed in range(3) for d in opened.imagine(likes=likes, n=8, seed=seed, candidates=1, **steer).dreams]
    return float(np.mean([dream.vector @ toward for dream in dreams]))


def test_somebody_known_by_pictures_or_a_vector_alone(opened: Recommender, tmp_path: Path) -> None:
    picture = opened.catalog.index["pic-poodle"]
    shutil.copy(opened.catalog.image_path(picture), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    vector = opened.vectors[picture]
    nobody = pull(opened, vector, [])
    assert pull(opened, vector, [], pictures=tmp_path) > nobody + 0.05
    assert pull(opened, vector, [], pictures=[tmp_path / "a.png"]) == pull(opened, vector, [], pictures=tmp_path)
    assert pull(opened, vector, [], vector=3 * vector) > nobody + 0.05
    for wrong in ({"pictures": tmp_path / "none"}, {"pictures": [tmp_path / "b.png"]}, {"vector": np.ones(3)}):
        with pytest.raises(MmrecError):
            opened.imagine(**wrong)


def test_a_round_learns_from_what_was_refused(opened: Recommender) -> None:
    user = opened.histories.user_ids[2]
    first = opened.imagine(user, k=5, n=4)
    refused = ids(first.items)[:3]
    again = opened.imagine(user, k=5, n=4, refused=refused)
    assert not set(refused) & set(ids(again.items))
    assert all(np.abs(a.vector - b.vector).max() > 0 for a, b in zip(first.dreams, again.dreams, strict=True))
    rows = [opened.catalog.index[item] for item in refused]
    away = opened.vectors[rows].mean(0)
    assert np.mean([d.vector @ away for d in again.dreams]) < np.mean([d.vector @ away for d in first.dreams])


def test_steers_pull_and_avoid_pushes(opened: Recommender, likes: list[str]) -> None:
    for text in ("food and drink", "a smiling face", "an animal", "a train"):
        vector = opened.steer("text", text)
        plain = pull(opened, vector, likes)
        assert pull(opened, vector, likes, text=text) > plain + 0.1, text
        assert pull(opened, vector, likes, avoid=text) < plain, text
    pictures = [opened.catalog.image_path(row) for row in (5, 16, 24)]
    sounds = [opened.catalog.audio_path(row) for row in (62, 66, 70)]
    for steer, files in (("image", pictures), ("audio", sounds)):
        gains = []
        for file in files:
            vector = opened.steer(steer, file)
            gains.append(pull(opened, vector, likes, **{steer: file}) - pull(opened, vector, likes))
        assert np.mean(gains) > 0.02, steer


def test_the_dial_of_a_steer_turns_it_up(opened: Recommender, likes: list[str]) -> None:
    from mmrec import Dials

    vector = opened.steer("text", "food and drink")
    turned = [pull(opened, vector, likes, text="food and drink", dials=Dials(text=weight)) for weight in (0, 1, 3)]
    assert turned[0] < turned[1] < turned[2]


def test_creations_are_of_the_right_kind(opened: Recommender, likes: list[str]) -> None:
    dreams = opened.imagine(likes=likes, n=2, seed=1).dreams
    pictures = opened.create(dreams, likes=likes, medium="image", seed=5)
    clips = opened.create(dreams[:1], likes=likes, medium="audio", seed=5)
    assert [c.clip for c in pictures] == [None, None]
    assert clips[0].picture is None
    for creation in pictures:
        assert creation.picture is not None
        assert creation.picture.mode == "RGB"
        assert np.asarray(creation.picture).std() > 1, "an empty picture"
    clip = clips[0].clip
    assert clip is not None
    assert clip.samples.dtype == np.float32
    assert 2 < len(clip.samples) / clip.rate < 60
    assert 0.01 < np.abs(clip.samples).max() <= 1
    assert clip.midi[:4] == b"MThd"
    assert {"copy", "off_taste", "nearest", "taste"} <= set(pictures[0].checks)
    again = opened.create(dreams, medium="image", seed=5)
    assert [np.array_equal(a.picture, b.picture) for a, b in zip(pictures, again, strict=True)] == [True, True]
    other = opened.create(dreams[:1], medium="image", seed=6)[0]
    assert not np.array_equal(pictures[0].picture, other.picture)
    assert opened.create([]) == []


def test_what_was_made_is_looked_at_again(opened: Recommender, likes: list[str]) -> None:
    dreams = opened.imagine(likes=likes, n=3, seed=1).dreams
    one, several = (opened.create(dreams, likes=likes, medium="image", candidates=c, seed=5) for c in (1, 6))
    better = [b.checks["likeness"] - a.checks["likeness"] for a, b in zip(one, several, strict=True)]
    assert np.mean(better) > 0.02, "the best of six is more like what was asked for than the first"
    encoder = opened._encoder("image")
    seen, _, mean = opened._centred("image")
    for creation in several:
        told = creation.checks
        assert told["candidates"] == 6
        assert told["presentable"] is True
        assert 0 < told["made_taste"] < 1
        made = encoder.encode([creation.picture], "image")[0] - mean
        assert told["made_nearest_cosine"] == pytest.approx((seen @ made / np.linalg.norm(made)).max(), abs=1e-4)
    strict = Recommender.load(opened.workspace.root)
    strict._centres["image"] = (seen, -1.0, mean)  # everything counts as a copy
    assert all(c.checks["copy"] for c in strict.create(dreams, likes=likes, medium="image", seed=5))


def test_real_neighbours_guide_the_decoder(
    opened: Recommender, likes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dreams = opened.imagine(likes=likes, n=2, seed=1).dreams
    for medium in ("image", "audio"):
        decoder, asked = opened.decoder(medium), []
        draw = decoder.decode
        monkeypatch.setattr(decoder, "decode", lambda *a, draw=draw, asked=asked, **k: asked.append(k) or draw(*a, **k))
        opened.create(dreams, medium=medium, references=3, candidates=2, seed=5)
        opened.create(dreams[:1], medium=medium, references=0, candidates=2, seed=5)
        vectors, embeddings = opened._seen(medium)
        for dream, told in zip(dreams, asked, strict=False):
            nearest = embeddings[np.argsort(-(vectors @ dream.vector), kind="stable")[:3]]
            np.testing.assert_array_equal(told["references"], np.stack([nearest] * 2))
        assert asked[2]["references"] is None


def test_dreams_off_taste_are_refused_unless_they_were_asked_for(
    opened: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion.prior import Dials

    users, wild = opened.histories.user_ids[:12], Dials(temperature=1.5)
    taste: dict[int, list[float]] = {1: [], 6: []}
    for candidates in taste:
        for user in users:
            dreams = opened.imagine(user, n=4, candidates=candidates, dials=wild).dreams
            taste[candidates] += [
                c.checks["taste"] for c in opened.create(dreams, user=user, candidates=1, medium="image")
            ]
    share = {candidates: np.mean(np.array(values) > 0.5) for candidates, values in taste.items()}
    assert share[6] > share[1] + 0.1
    asked = [opened.imagine(users[0], text="a train", n=4, candidates=c, seed=2).dreams for c in (1, 4)]
    for a, b in zip(*asked, strict=True):
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-4)
    monkeypatch.setitem(opened.__dict__, "_threshold", -1.0)
    # All are copies now: the best of sixteen are kept.
    drawn, copies = (
        np.stack([d.vector for d in opened.imagine(users[0], text="a train", n=n, candidates=c, seed=2).dreams])
        for n, c in ((16, 1), (4, 4))
    )
    taste_of = opened._verdicts(drawn, *opened._taste(users[0], (), ()))["taste"]
    best = np.sort(np.argsort(-taste_of, kind="stable")[:4])
    np.testing.assert_allclose(copies, drawn[best], atol=1e-4)


def test_an_item_is_changed_as_far_as_the_number_says(opened: Recommender, likes: list[str]) -> None:
    item = "pic-poodle"
    vector = opened.vectors[opened.catalog.index[item]]
    kept = [
        np.mean([d.vector @ vector for d in opened.imagine(likes=likes, edit=item, strength=s, n=4).dreams])
        for s in (0.0, 0.15, 0.3, 0.6, 1.0)
    ]
    assert kept[0] == pytest.approx(1, abs=1e-4)
    assert (np.diff(kept) < 0).all()
    assert kept[2] > 0.35
    with pytest.raises(MmrecError, match="no item 'nothing'"):
        opened.imagine(likes=likes, edit="nothing")


def test_decoders_and_prompts_are_ranked_for_a_person(opened: Recommender, tmp_path: Path) -> None:
    user, other = opened.histories.user_ids[:2]
    opened.decoder("image").save_pretrained(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps({**config, "side": 32}))
    prompts, decoders = ("food", "a train"), ("builtin_image", str(tmp_path / "small"))
    ranked = opened.rank(user, prompts=prompts, decoders=decoders, n=2, seed=3)
    assert len(ranked) == 8
    assert {(one.decoder, one.prompt) for one in ranked} == {(d, p) for d in decoders for p in prompts}
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert all(one.score == one.creation.checks["made_taste"] for one in ranked)
    assert {one.creation.picture.size for one in ranked if one.decoder == decoders[1]} == {(32, 32)}
    theirs = opened.rank(other, prompts=prompts, decoders=decoders, n=2, seed=3)
    assert [one.score for one in theirs] != [one.score for one in ranked], "ranked for a person"
    with pytest.raises(ValueError, match="builtin_music draws embeddings of the space 'musicnn_mtt'"):
        opened.rank(user, decoders=["builtin_music"])


def test_dreams_for_many_are_the_same_whoever_else_is_asked(opened: Recommender) -> None:
    users = opened.histories.user_ids[:7]
    wish = {"n": 2, "steps": 2, "text": "food", "candidates": 2}
    together = opened.dream_each(users, seeds=range(7), **wish)
    for rows in ([3], [0, 1], [6, 2, 4]):
        apart = opened.dream_each([users[r] for r in rows], seeds=rows, **wish)
        for row, dreams in zip(rows, apart, strict=True):
            for a, b in zip(dreams, together[row], strict=True):
                np.testing.assert_array_equal(a.vector, b.vector)
                assert ids(a.items) == ids(b.items)
    alone = opened.imagine(users[5], n=2, steps=2, text="food", candidates=2, seed=5)
    np.testing.assert_allclose(alone.dreams[0].vector, together[5][0].vector, atol=1e-4)


# -- people and places -------------------------------------------------------------------------------------------------


def test_starters_are_distinct_and_spread(opened: Recommender) -> None:
    starters = ids(opened.starters(12))
    assert len(set(starters)) == 12
    assert starters == ids(opened.starters(12))
    assert len(set(ids(opened.starters(1000)))) == len(opened.catalog)
    rows = [opened.catalog.index[item] for item in starters]
    chosen = opened.vectors[rows]
    cosine = (chosen @ chosen.T)[np.triu_indices(12, 1)].mean()
    everything = (opened.vectors @ opened.vectors.T)[np.triu_indices(len(opened.catalog), 1)].mean()
    assert cosine < everything


def test_the_map_has_a_place_for_every_item(opened: Recommender) -> None:
    places = opened.map()
    assert places.shape == (len(opened.catalog), 2)
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == len(places)


def test_modalities_say_who_has_what(opened: Recommender) -> None:
    has = opened.modalities
    assert has["text"].all()
    assert has["image"].tolist() == [item.startswith("pic-") for item in opened.catalog.item_ids]
    assert (has["audio"] ^ has["image"]).all()


# -- the workspace below it --------------------------------------------------------------------------------------------


def test_what_is_no_workspace_says_so(tmp_path: Path) -> None:
    with pytest.raises(MmrecError, match=r"is no workspace\n.*mmrec ingest"):
        Recommender.load(tmp_path)


def test_semantic_ids_of_another_catalog_are_refused(tiny_workspace: Path, tmp_path: Path) -> None:
    mine = copy_of(tiny_workspace, tmp_path / "mine")
    record = mine / "ids" / "artifact.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    del told["checksum"]
    record.write_text(json.dumps({**told, "inputs": {"vectors": "0" * 16}}), encoding="utf-8")
    with pytest.raises(StaleArtifact, match=r"another catalog\n.*mmrec tokenize"):
        Recommender.load(mine).recommend(k=1)


def test_a_workspace_built_again_is_not_mixed_with_what_was_opened(tiny_workspace: Path, tmp_path: Path) -> None:
    from mmrec import stages

    mine = copy_of(tiny_workspace, tmp_path / "mine")
    opened = Recommender.load(mine)
    recipe = Recipe.load(mine / "recipe.yaml")
    recipe.fusion = {"dim": 24}
    for stage in (stages.fuse, stages.tokenize, stages.index):
        stage(Workspace(mine), recipe)
    with pytest.raises(MmrecError, match=r"built again while it was open\n.*open it again"):
        opened.similar("pic-poodle")
    assert Recommender.load(mine).search("a dog", k=3)


def test_without_a_log_search_works_and_the_rest_says_what_is_missing(tiny_workspace: Path, tmp_path: Path) -> None:
    from mmrec import stages

    mine = copy_of(tiny_workspace, tmp_path / "mine")
    for stage in ("interactions", "retriever", "prior", "evaluation", "vectors", "ids", "index"):
        shutil.rmtree((mine / stage).resolve())
        (mine / stage).unlink()
    recipe = Recipe.load(mine / "recipe.yaml")
    for stage in (stages.fuse, stages.tokenize, stages.index):
        stage(Workspace(mine), recipe)
    opened = Recommender.load(mine)
    assert ids(opened.search("poodle, a dog", k=3)).count("pic-poodle") == 1
    assert len(opened.starters(5)) == 5
    for ask in (opened.recommend, opened.imagine):
        with pytest.raises(MmrecError, match=r"no log of who liked what(.|\n)*--log LOG"):
            ask(likes=["pic-poodle"])
    with pytest.raises(MmrecError, match="the log has no user"):
        opened.recommend("ann")


# -- new items ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def newcomers(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Real pictures that the workspace does not know."""
    from mmrec.datasets.demo_pictures import demo_pictures

    folder = tmp_path_factory.mktemp("new")
    known = set(Recommender.load(tiny_workspace).catalog.item_ids)
    rows = [
        row | {"file": folder / row["image"]} for row in demo_pictures(folder, 96, 7) if row["item_id"] not in known
    ]
    assert len(rows) >= 3
    return rows


def table_of(rows: list[dict], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copy2(row["file"], folder)
    lines = [
        json.dumps({"id": r["item_id"], "title": r["title"], "text": r["text"], "image": r["image"]}) for r in rows
    ]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "items.jsonl"


def test_new_items_can_be_recommended_with_nothing_trained_again(
    tiny_workspace: Path, newcomers: list[dict], tmp_path: Path
) -> None:
    from mmrec import stages

    mine = copy_of(tiny_workspace, tmp_path / "mine")
    recipe = Recipe.load(mine / "recipe.yaml")
    trained = {stage: Workspace(mine).require(stage) for stage in ("retriever", "prior", "vectors", "ids")}
    first, second = newcomers[:2], newcomers[2:3]
    assert stages.add(Workspace(mine), recipe, table_of(first, tmp_path / "first"))[1] is True
    assert stages.add(Workspace(mine), recipe, table_of(second, tmp_path / "second"))[1] is True
    assert {stage: Workspace(mine).require(stage) for stage in trained} == trained

    opened = Recommender.load(mine)
    new = [row["item_id"] for row in (*first, *second)]
    assert opened.catalog.item_ids[-3:] == new
    assert len({tuple(code) for code in opened.ids.codes.tolist()}) == len(opened.catalog) == len(opened.vectors) == 75
    for row in (*first, *second):
        assert row["item_id"] in ids(opened.search(row["title"], k=3))
    for mode in MODES:
        assert set(ids(opened.recommend(likes=["pic-poodle"], k=74, mode=mode))) >= set(new)
        assert set(ids(opened.recommend(likes=["pic-poodle"], k=3, mode=mode, allowed=new))) == set(new)
    user = opened.histories.user_ids[0]
    assert set(ids(opened.imagine(user, n=2, k=75).items)) >= set(new)
    assert opened.recommend(likes=new[:1], k=5), "a like of something new"
    assert opened.map().shape == (75, 2)
    assert all(len(has) == 75 for has in opened.modalities.values())
    assert len(set(ids(opened.starters(75)))) == 75

    with pytest.raises(MmrecError, match=f"in the catalog already, the first is {new[0]!r}"):
        stages.add(Workspace(mine), recipe, table_of(first, tmp_path / "again"))
    assert Recommender.load(mine).catalog.item_ids[-3:] == new, "what was added stays"


def test_items_added_to_a_catalog_that_was_trained_again_ask_to_be_encoded_again(
    tiny_workspace: Path, newcomers: list[dict], tmp_path: Path
) -> None:
    from mmrec import stages

    mine = copy_of(tiny_workspace, tmp_path / "mine")
    recipe = Recipe.load(mine / "recipe.yaml")
    source = table_of(newcomers[:1], tmp_path / "first")
    stages.add(Workspace(mine), recipe, source)
    recipe.fusion = {"dim": 24}
    for stage in (stages.fuse, stages.tokenize, stages.index):
        stage(Workspace(mine), recipe)
    with pytest.raises(StaleArtifact, match=r"additions was made from (.|\n)*mmrec add"):
        Recommender.load(mine)
    assert stages.add(Workspace(mine), recipe)[1] is True
    opened = Recommender.load(mine)
    assert opened.vectors.shape == (73, 24)
    assert newcomers[0]["item_id"] in ids(opened.similar("pic-face-palm", 72))


def test_there_must_be_something_to_add(tiny_workspace: Path, tmp_path: Path) -> None:
    from mmrec import stages

    mine = copy_of(tiny_workspace, tmp_path / "mine")
    recipe = Recipe.load(mine / "recipe.yaml")
    with pytest.raises(MmrecError, match="nothing to add"):
        stages.add(Workspace(mine), recipe)
    with pytest.raises(MmrecError, match="no file or folder at"):
        stages.add(Workspace(mine), recipe, tmp_path / "absent")
    assert Workspace(mine).current("additions") is None
