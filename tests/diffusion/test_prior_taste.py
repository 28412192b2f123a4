"""A world whose answer is known: ten clusters of items, everybody likes two of them."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from diffusion.fidelity import checks, copy_threshold, keep
from diffusion.guidance import Dials
from diffusion.network import PriorConfig
from diffusion.prior import Conditions, Prior
from diffusion.regression import RegressionPrior, train_regression
from diffusion.training import train_prior
from diffusion.verifier import fit_verifier

CLUSTERS, DIM = 10, 32
SMALL = PriorConfig(
    width=64, depth=2, heads=2, context_width=32, max_history=20, batch_size=64, targets=4, steps=250,
    learning_rate=3e-3, ema_decay=0.97,
)  # fmt: skip


@dataclass
class World:
    centres: np.ndarray  # [K, D]
    vectors: np.ndarray  # [N, D]
    cluster: np.ndarray  # [N]
    histories: list[np.ndarray]
    preferences: list[np.ndarray]

    def people(self, count: int, seed: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Each likes two clusters and dislikes a third ([count, 3]); six likes and three dislikes are known."""
        rng = np.random.default_rng(seed)
        tastes = np.stack([rng.choice(CLUSTERS, 3, replace=False) for _ in range(count)])
        items = [np.concatenate([rng.choice(np.flatnonzero(self.cluster == k), 3) for k in row]) for row in tastes]
        return tastes, items, [np.repeat([1.0, 1.0, -1.0], 3).astype(np.float32)] * count


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, DIM))
    cluster = np.repeat(np.arange(CLUSTERS), 30)
    vectors = centres[cluster] + 0.5 * rng.standard_normal((len(cluster), DIM))
    centres, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (centres, vectors))
    histories, preferences = [], []
    for _ in range(300):
        taste = rng.choice(CLUSTERS, 3, replace=False)
        kind = rng.choice(3, 14, p=[0.4, 0.4, 0.2])
        histories.append(np.array([rng.choice(np.flatnonzero(cluster == taste[k])) for k in kind]))
        preferences.append(np.where(kind == 2, -1, 1).astype(np.float32))
    return World(centres.astype(np.float32), vectors.astype(np.float32), cluster, histories, preferences)


@pytest.fixture(scope="module")
def prior(world: World) -> Prior:
    return train_prior(world.histories, world.preferences, world.vectors, SMALL, seed=0)


@pytest.fixture(scope="module")
def regression(world: World) -> RegressionPrior:
    return train_regression(world.histories, world.preferences, world.vectors, SMALL, seed=0)


def told(world: World, count: int = 40, seed: int = 7) -> tuple[np.ndarray, Conditions]:
    tastes, items, preferences = world.people(count, seed)
    return tastes, Conditions.from_histories(items, preferences, world.vectors)


def nearest(world: World, seeds: np.ndarray) -> np.ndarray:
    """Cluster of the nearest item of each seed [B, n, D] -> [B, n]"""
    return world.cluster[(seeds @ world.vectors.T).argmax(-1)]


def test_seeds_cover_a_mixed_taste_that_regression_averages(
    world: World, prior: Prior, regression: RegressionPrior
) -> None:
    tastes, conditions = told(world)
    seeds = nearest(world, prior.sample(conditions, 32))
    shares = np.array([[(found == k).mean() for k in taste[:2]] for taste, found in zip(tastes, seeds, strict=True)])
    assert shares.sum(1).mean() > 0.6  # by chance .2
    assert (shares.min(1) > 0.1).mean() > 0.8  # these people get both of their tastes
    mean = regression.predict(conditions)
    both = np.take_along_axis(mean @ world.centres.T, tastes[:, :2], 1)
    assert both.min(1).mean() > 0.35  # near both centres at once ...
    assert both.max(1).mean() < 0.85  # ... and at neither


def test_a_stronger_likes_dial_stays_closer_to_the_taste(world: World, prior: Prior) -> None:
    tastes, conditions = told(world)
    belongs = [
        np.mean([np.isin(f, t[:2]).mean() for t, f in zip(tastes, nearest(world, seeds), strict=True)])
        for seeds in (prior.sample(conditions, 16, dials=Dials(likes=w)) for w in (0, 1, 2))
    ]
    assert belongs[0] < 0.4 < belongs[1] < belongs[2]


@pytest.mark.parametrize("steer", ["text", "image", "audio"])
def test_a_steer_pulls_the_harder_the_larger_its_dial(world: World, prior: Prior, steer: str) -> None:
    tastes, conditions = told(world)
    towards = world.centres[tastes[:, 0]]
    setattr(conditions, steer, towards)
    pull = [
        np.einsum("bnd,bd->bn", prior.sample(conditions, 12, dials=Dials(**{steer: w})), towards).mean()
        for w in (0, 1, 2)
    ]
    assert pull[1] > pull[0] + 0.15
    assert pull[2] > pull[1]


def test_avoid_pushes_away_and_leaves_the_rest_of_the_taste(world: World, prior: Prior) -> None:
    tastes, conditions = told(world)
    conditions.avoid = world.centres[tastes[:, 0]]
    seeds = [prior.sample(conditions, 12, dials=Dials(avoid=w)) for w in (0, 1, 2)]
    avoided = [np.einsum("bnd,bd->bn", s, conditions.avoid).mean(1) for s in seeds]
    assert avoided[0].mean() - avoided[1].mean() > 5 * (avoided[0] - avoided[1]).std() / np.sqrt(len(tastes))
    assert avoided[2].mean() < avoided[1].mean() < avoided[0].mean() - 0.1
    other = [np.einsum("bnd,bd->bn", s, world.centres[tastes[:, 1]]).mean() for s in seeds]
    assert other[1] > other[0]


def test_dislikes_push_away(world: World, prior: Prior) -> None:
    tastes, conditions = told(world, count=80)
    disliked = world.centres[tastes[:, 2]]
    cosine = [
        np.einsum("bnd,bd->bn", prior.sample(conditions, 12, dials=Dials(dislikes=w)), disliked).mean()
        for w in (0, 1, 3)
    ]
    assert cosine[0] > cosine[1] > cosine[2]


def test_temperature_is_exploration(world: World, prior: Prior) -> None:
    _, conditions = told(world, count=10)
    spread = []
    for temperature in (0.0, 0.5, 1.0, 1.5, 2.0):
        seeds = prior.sample(conditions, 16, dials=Dials(temperature=temperature))
        spread.append(1 - np.einsum("bnd,bmd->bnm", seeds, seeds).mean())
    assert spread[0] == pytest.approx(0, abs=1e-5)
    assert (np.diff(spread) > 0.02).all()


def test_editing_leads_from_the_item_to_the_taste_by_one_number(world: World, prior: Prior) -> None:
    tastes, conditions = told(world, count=20)
    item = world.vectors[np.flatnonzero(world.cluster == 0)[0]]
    others = (tastes[:, :2] != 0).all(1)  # people to whom the item means nothing
    kept, liked = [], []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        seeds = prior.sample(conditions, 8, edit=item, strength=strength)[others]
        kept.append((seeds @ item).mean())
        liked.append(
            np.mean([np.isin(row, t[:2]) for row, t in zip(nearest(world, seeds), tastes[others], strict=True)])
        )
    assert kept[0] == pytest.approx(1, abs=1e-5)
    assert (np.diff(kept) < 0).all()
    assert kept[1] > 0.5, "a light touch leaves the item recognisable"
    assert liked[0] == 0
    assert liked[-1] > 0.5
    np.testing.assert_allclose(
        prior.sample(conditions, 8, edit=item, strength=1.0), prior.sample(conditions, 8), atol=1e-5
    )
    for wrong in ({"edit": item, "strength": 1.5}, {"edit": item[1:]}, {"edit": item[None]}):
        with pytest.raises(ValueError, match=r"strength|edits one vector"):
            prior.sample(conditions, 1, **wrong)  # type: ignore[arg-type]


def test_nobody_known_gives_the_whole_catalog(world: World, prior: Prior) -> None:
    nobody = Conditions(np.zeros((1, 0, DIM)), np.zeros((1, 0)), np.zeros((1, 0)))
    share = np.bincount(nearest(world, prior.sample(nobody, 300))[0], minlength=CLUSTERS) / 300
    assert share.min() > 0.03
    assert share.max() < 0.25


def test_three_likes_are_enough_for_a_new_person(world: World, prior: Prior) -> None:
    items = [np.flatnonzero(world.cluster == k)[:3] for k in range(CLUSTERS)]
    conditions = Conditions.from_histories(items, [np.ones(3, np.float32)] * CLUSTERS, world.vectors)
    conditions.ordered = False
    found = nearest(world, prior.sample(conditions, 16, dials=Dials(likes=2)))
    share = [(row == k).mean() for k, row in enumerate(found)]
    assert np.mean(share) > 0.4  # by chance .1


def test_bridge_outputs_given_as_steers_are_what_the_prior_learns(world: World) -> None:
    turned = world.vectors[:, ::-1].copy()  # a bridge with a habit of its own
    prior = train_prior(
        world.histories, world.preferences, world.vectors, replace(SMALL, steps=150), steers={"text": turned}
    )
    centres = world.centres[:, ::-1].copy()
    nobody = Conditions(np.zeros((CLUSTERS, 0, DIM)), np.zeros((CLUSTERS, 0)), np.zeros((CLUSTERS, 0)), text=centres)
    found = nearest(world, prior.sample(nobody, 8))
    assert (found == np.arange(CLUSTERS)[:, None]).mean() > 0.6


def test_refusing_what_the_verifier_finds_off_taste_keeps_both_tastes(world: World, prior: Prior) -> None:
    tastes, items, rated = world.people(20, seed=7)
    conditions = Conditions.from_histories(items, rated, world.vectors)
    many = prior.sample(conditions, 32, dials=Dials(temperature=1.6))  # wild ones
    verifier = fit_verifier(world.histories, world.preferences, world.vectors, seed=0)
    assert verifier.held_out["auc"] > 0.9
    on_taste: dict[str, list[float]] = {"first": [], "kept": []}
    both = []
    for row, taste in enumerate(tastes):
        found = checks(many[row], world.vectors, items[row], rated[row], verifier, copy_threshold(world.vectors))
        kept = many[row, keep(found["off_taste"], found["taste"], 8)]
        for name, seeds in (("first", many[row, :8]), ("kept", kept)):
            on_taste[name].append(np.isin(nearest(world, seeds), taste[:2]).mean())
        both.append(set(taste[:2]) <= set(nearest(world, kept)))
    assert np.mean(on_taste["kept"]) > np.mean(on_taste["first"]) + 0.05
    assert np.mean(both) > 0.8
