"""`mmrec tokenize --tokenizer NAME` on the small, really built workspace, whichever the tokenizer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmrec import stages
from mmrec.config import Recipe
from mmrec.workspace import Workspace
from retrieval.semantic_ids import SemanticIds, load_tokenizer, tokenizer_names

LEARNED = {"rqvae", "fsq", "letter", "lcrec", "prorec"}


@pytest.fixture
def mine(tiny_workspace: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    return root


@pytest.fixture
def tokenize(mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mmrec tokenize`: what it printed, or complained of with exit code 1."""
    from mmrec.cli import main

    def run(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["mmrec", "tokenize", "-w", str(mine), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert bool(ended.value.code) == fails, said.err
        return said.err if fails else said.out

    return run


def set_options(root: Path, **options: object) -> None:
    recipe = yaml.safe_load((root / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["tokenizer"] = options
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(tokenizer_names()) - {"residual_kmeans"}))
def test_every_tokenizer_by_name(name: str, mine: Path, tokenize: Callable[..., str]) -> None:
    set_options(mine, levels=2, codebook_size=16, **({"epochs": 20, "hidden": 32} if name in LEARNED else {}))
    said = tokenize("--tokenizer", name)
    assert "72 semantic IDs, 0 shared" in said
    ids = Workspace(mine).require("ids")
    assert ("interactions" in ids.inputs) == ("histories" in load_tokenizer(ids.path / "tokenizer").needs)
    assert len(np.unique(SemanticIds.load(ids.path / "ids").codes, axis=0)) == 72
    assert json.loads((ids.path / "diagnostics.json").read_text(encoding="utf-8"))["collisions"] == 0
    assert "fresh" in tokenize()


def test_what_needs_a_log_says_so_where_there_is_none(mine: Path, tokenize: Callable[..., str]) -> None:
    (mine / "interactions").unlink()
    assert "there is no log" in tokenize("--tokenizer", "collaborative", fails=True)


def test_histories_are_those_of_the_training_part(mine: Path) -> None:
    """Whatever people wanted later, the tokenizer learns from the same."""
    workspace, recipe = Workspace(mine), Recipe.load(mine / "recipe.yaml")
    train = stages.load_split(workspace, recipe)[2].train
    context = stages._context_for(("histories",), workspace, recipe)
    assert [len(items) for items in context.histories] == [
        int((preferences >= 0).sum()) for preferences in train.preferences
    ]
    assert not context.modalities
    known = stages._context_for(("modalities",), workspace, recipe).modalities
    assert {name: int(x.any(axis=1).sum()) for name, x in known.items()} == {"text": 72, "image": 60, "audio": 12}
