"""Simulated people for the demo: who they are, what they meet next, and how they rate it.

Nobody here is real. The generator is small and meant to be read; `docs/data-card-demo.md` tells it in words. It knows
the *leaves* of the catalog (a subgroup of pictures, an instrument within a family of music) and never looks at pixels,
sound or text, so whatever a model finds in those it has to find itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

START = 1_735_689_600  # 2025-01-01, when the simulated year begins
DAY = 86_400
EVENTS = (20, 45)  # fewest and most events of a person
LINKED = {  # music that goes with a group of pictures: who likes the one likes the other more often
    "reel": "activities", "jig": "activities", "slip jig": "animals", "hornpipe": "transport", "strathspey": "clothing",
    "waltz": "food", "air": "nature", "chorale": "places", "madrigal": "faces", "medieval": "people",
    "quartet": "objects",
}  # fmt: skip
LINK_STRENGTH = 4.0  # how many times likelier a taste becomes by a linked one


@dataclass(frozen=True)
class _World:
    """What all people share: N items in L leaves of F families."""

    leaves: list[np.ndarray]  # item indices of each leaf, in the order of the catalog
    leaf_of: np.ndarray  # int64 [N]
    family_of: np.ndarray  # int64 [L]
    members: list[np.ndarray]  # leaves of each family, in order
    links: np.ndarray  # float64 [F, F], 1 or LINK_STRENGTH
    popularity: np.ndarray  # float64 [N], how likely an item is met among others
    appeal: np.ndarray  # float64 [N], standard normal: what makes an item rated well by anyone
    reached: np.ndarray  # float64 [N], `popularity` summed up to each item


@dataclass(frozen=True)
class _Person:
    tastes: np.ndarray  # int64 [K] families, two to four and sometimes one that comes later
    start: np.ndarray  # float64 [K] weights of the tastes at the first event
    end: np.ndarray  # float64 [K] and at the last
    homes: list[np.ndarray]  # per taste, weights of the family's leaves, summed up to each
    fit: np.ndarray  # float64 [L] how well the items of a leaf suit, in stars
    wandering: float  # chance that an event is none of the above but what is popular
    staying: float  # chance that the next event stays in the leaf
    completing: float  # chance that it is then the item next in the leaf


def simulate_people(items: list[dict[str, Any]], users: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Simulate the log of `users` people with a catalog: DataFrame with `user`, `item`, `time` (s), `rating` (1 to 5).

    `items` are catalog rows: `item_id` and `metadata` with `group` and `subgroup` or `family` and `instrument`. People
    are called sim-0001 and so on, and meet an item once. Same items, users and seed: same log.
    """
    import pandas as pd

    if not items or users < 1:
        raise ValueError(f"There is nothing to simulate: {len(items)} items, {users} users.")
    world = _make_world(items, np.random.default_rng([seed, 0]))
    columns: dict[str, list[Any]] = {"user": [], "item": [], "time": [], "rating": []}
    for u in range(users):
        rng = np.random.default_rng([seed, 1, u])  # a person stays the same however many others there are
        for item, time, rating in _live(world, _make_person(world, rng), rng):
            columns["user"].append(f"sim-{u + 1:04d}")
            columns["item"].append(items[item]["item_id"])
            columns["time"].append(time)
            columns["rating"].append(rating)
    return pd.DataFrame(columns)


def _make_world(items: list[dict[str, Any]], rng: np.random.Generator) -> _World:
    names: dict[tuple[str, str], int] = {}
    leaf_of = np.empty(len(items), dtype=np.int64)
    for i, item in enumerate(items):
        told = item.get("metadata") or {}
        family = str(told.get("group") or told.get("family") or told.get("folder") or "all")
        leaf_of[i] = names.setdefault((family, str(told.get("subgroup") or told.get("instrument") or "")), len(names))
    families = list(dict.fromkeys(family for family, _ in names))
    family_of = np.array([families.index(family) for family, _ in names], dtype=np.int64)
    links = np.ones((len(families), len(families)))
    for music, pictures in LINKED.items():
        if music in families and pictures in families:
            a, b = families.index(music), families.index(pictures)
            links[a, b] = links[b, a] = LINK_STRENGTH
    appeal = rng.standard_normal(len(items))
    ranks = np.argsort(np.argsort(-(appeal + rng.standard_normal(len(items)))))  # well liked is more often popular
    popularity = (ranks + 1.0) ** -0.8
    return _World(
        leaves=[np.flatnonzero(leaf_of == leaf) for leaf in range(len(names))],
        leaf_of=leaf_of,
        family_of=family_of,
        members=[np.flatnonzero(family_of == family) for family in range(len(families))],
        links=links,
        popularity=popularity,
        appeal=appeal,
        reached=np.cumsum(popularity),
    )


def _make_person(world: _World, rng: np.random.Generator) -> _Person:
    sizes = np.sqrt([sum(len(world.leaves[leaf]) for leaf in leaves) for leaves in world.members])
    tastes: list[int] = []
    drifts = rng.random() < 0.5
    wanted = int(rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2])) + drifts
    for _ in range(min(wanted, len(sizes))):
        weights = sizes * world.links[tastes].prod(axis=0)
        weights[tastes] = 0
        tastes.append(int(rng.choice(len(sizes), p=weights / weights.sum())))
    start, end = rng.dirichlet(np.full(len(tastes), 2.0)), rng.dirichlet(np.full(len(tastes), 2.0))
    if drifts and len(tastes) > 1:  # the last taste comes later, the first one fades
        start[-1], end[0] = 0.0, 0.2 * end[0]
    homes = [rng.dirichlet(np.full(len(world.members[taste]), 0.5)) for taste in tastes]
    fit = np.full(len(world.leaves), -0.8)
    for taste, weights in zip(tastes, homes, strict=True):
        fit[world.members[taste]] = np.where(weights >= 0.5 / len(weights), 1.2, 0.2)
    others = np.setdiff1d(np.arange(len(sizes)), tastes)
    for family in rng.permutation(others)[: rng.integers(1, 4)]:
        fit[world.members[family]] = -1.9
    return _Person(
        tastes=np.array(tastes),
        start=start / start.sum(),
        end=end / end.sum(),
        homes=[np.cumsum(weights) for weights in homes],
        fit=fit,
        wandering=float(rng.beta(3, 12)),
        staying=float(rng.uniform(0.55, 0.8)),
        completing=float(rng.beta(2, 4)),
    )


def _live(world: _World, person: _Person, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """The events of a person: (item, time, rating), oldest first."""
    count = min(int(rng.integers(EVENTS[0], EVENTS[1] + 1)), len(world.leaf_of))
    unseen = np.ones(len(world.leaf_of), dtype=bool)
    time = START + rng.uniform(0, 240) * DAY
    leaf, last, bored = -1, -1, True
    events: list[tuple[int, int, int]] = []
    while len(events) < count:
        if rng.random() < person.wandering:
            item = _draw_popular(world, unseen, rng)
        else:
            if bored or not unseen[world.leaves[leaf]].any():
                leaf, last = _next_leaf(world, person, leaf, len(events) / count, unseen, rng), -1
            item = _draw_popular(world, unseen, rng) if leaf < 0 else _in_leaf(world, person, leaf, last, unseen, rng)
        unseen[item] = False
        rating = _rate(world, person, item, rng)
        events.append((item, int(time), rating))
        if leaf >= 0 and world.leaf_of[item] == leaf:
            last = item
            met = 1 - unseen[world.leaves[leaf]].mean()
            staying = person.staying + (0.15 if met > 0.5 else 0.0)  # nearly complete: one goes on
            bored = rating <= 2 or rng.random() > staying
        time += rng.uniform(20, 240) if not bored or rng.random() < 0.5 else rng.exponential(3 * DAY)
    return events


def _next_leaf(
    world: _World, person: _Person, leaf: int, progress: float, unseen: np.ndarray, rng: np.random.Generator
) -> int:
    """The family's next leaf with chance .4, else one of a taste as strong as it is by now; -1 if all are seen."""
    if leaf >= 0 and rng.random() < 0.4:
        ring = world.members[world.family_of[leaf]]
        related = int(ring[(int(np.flatnonzero(ring == leaf)[0]) + 1) % len(ring)])
        if unseen[world.leaves[related]].any():
            return related
    weights = np.cumsum((1 - progress) * person.start + progress * person.end)
    for _ in range(20):
        taste = _draw(weights, rng)
        chosen = int(world.members[person.tastes[taste]][_draw(person.homes[taste], rng)])
        if unseen[world.leaves[chosen]].any():
            return chosen
    return -1


def _in_leaf(world: _World, person: _Person, leaf: int, last: int, unseen: np.ndarray, rng: np.random.Generator) -> int:
    members = world.leaves[leaf]
    left = members[unseen[members]]
    if last >= 0 and rng.random() < person.completing:
        return int(left[np.searchsorted(left, last) % len(left)])  # the next one in the leaf, around its end
    return int(left[_draw(np.cumsum(world.popularity[left]), rng)])


def _draw_popular(world: _World, unseen: np.ndarray, rng: np.random.Generator) -> int:
    for _ in range(100):
        if unseen[item := _draw(world.reached, rng)]:
            return item
    left = np.flatnonzero(unseen)  # a small catalog of which most is seen
    return int(left[_draw(np.cumsum(world.popularity[left]), rng)])


def _draw(reached: np.ndarray, rng: np.random.Generator) -> int:
    """One position, drawn by weights that are given as their running sum."""
    return min(int(np.searchsorted(reached, rng.random() * reached[-1], side="right")), len(reached) - 1)


def _rate(world: _World, person: _Person, item: int, rng: np.random.Generator) -> int:
    stars = 3.0 + person.fit[world.leaf_of[item]] + 0.4 * world.appeal[item] + rng.normal(0, 0.7)
    return int(np.clip(np.rint(stars), 1, 5))
