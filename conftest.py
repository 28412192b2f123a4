"""What several tests share: one small workspace, really built, from real pictures, music, words and a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TINY = """
name: tiny
source:
  dataset: demo
  simulated: true
  options: {pictures: 60, music: 12, seconds: 4, users: 120}
fusion: {dim: 32}
tokenizer: {name: residual_kmeans, levels: 2, codebook_size: 16}
retriever: {dim: 32, blocks: 1, heads: 2, epochs: 4}
prior: {width: 64, depth: 2, heads: 2, context_width: 32, steps: 80, batch_size: 64, checkpoint_every: 20}
"""


@pytest.fixture(autouse=True)
def _main_stays_main() -> Iterator[None]:
    """Streamlit's AppTest leaves its page in the place of `__main__`, and every process started later would run it."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(autouse=True)
def _facade_for_doctests(request: pytest.FixtureRequest, doctest_namespace: dict[str, object]) -> None:
    if request.node.name.startswith("mmrec.recommender"):
        from mmrec import Recommender

        doctest_namespace["recommender"] = Recommender.load(request.getfixturevalue("tiny_workspace"))


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_workspace(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished workspace; tests that change one copy it first."""
    from mmrec import stages
    from mmrec.config import Recipe
    from mmrec.workspace import Workspace

    root = tmp_path_factory.mktemp("workspaces") / "tiny"
    stages.run(Workspace(root), Recipe.load(tiny_recipe))
    return root
