"""`mmrec train hybrid` and what `Recommender` makes of it, on the small trained workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmrec import Recommender
from mmrec.config import Recipe
from mmrec.errors import StaleArtifact
from mmrec.hybrid import SAID, calibrate, told
from mmrec.workspace import Workspace


def test_hybrid_recommendations_say_who_proposed_them(tiny_workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "hybrid").unlink()
    likes = [item.item_id for item in Recommender.load(root).starters(4)]
    with pytest.raises(StaleArtifact, match="mmrec train hybrid"):
        Recommender.load(root).recommend(likes=likes, mode="hybrid")

    recipe = Recipe.load(root / "recipe.yaml")
    artifact, built = calibrate(Workspace(root), recipe)
    assert built
    assert (artifact.path / "hybrid.json").is_file()
    assert not calibrate(Workspace(root), recipe)[1], "fresh the second time"

    recommender = Recommender.load(root)
    items = recommender.recommend(likes=likes[:-1], dislikes=likes[-1:], k=8, mode="hybrid", avoid=0)
    assert len({item.item_id for item in items} - set(likes)) == 8
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
    assert all(0 < item.score < 1 for item in items)
    explained = recommender.explain(likes=likes[:-1], dislikes=likes[-1:], k=8)
    assert [item.item_id for item, _ in explained] == [item.item_id for item in items]
    for item, votes in explained:
        assert votes
        assert item.reason == told(votes)
        assert {vote.source for vote in votes} <= SAID.keys()
    only = [item.item_id for item in items[4:]]
    kept = recommender.recommend(likes=likes[:-1], k=8, mode="hybrid", allowed=only)
    assert {item.item_id for item in kept} == set(only)
