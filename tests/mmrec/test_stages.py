"""The stages over the small, really built workspace: what is skipped, what is built again, what is learnt from what."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec import stages
from mmrec.config import Evaluation, Recipe
from mmrec.errors import MmrecError
from mmrec.evaluation.stage import evaluate
from mmrec.interactions import Histories
from mmrec.workspace import Workspace


@pytest.fixture
def mine(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    root = tmp_path / "mine"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "sources").symlink_to(tiny_workspace / "sources")
    return Workspace(root)


def recipe_of(workspace: Workspace) -> Recipe:
    return Recipe.load(workspace.root / "recipe.yaml")


def test_the_second_run_builds_nothing(mine: Workspace) -> None:
    built = stages.run(mine, recipe_of(mine))
    assert len(built) >= 9
    assert not any(fresh for _, fresh in built)


def test_a_changed_option_builds_what_depends_on_it_and_no_more(mine: Workspace) -> None:
    recipe = recipe_of(mine)
    recipe.index = "HNSW16"
    assert stages.index(mine, recipe)[1] is True
    others = (stages.embed, stages.fuse, stages.tokenize, stages.train_retriever, stages.train_prior)
    assert not any(stage(mine, recipe)[1] for stage in others)
    with pytest.raises(MmrecError, match="evaluation was made from index"):
        mine.require("evaluation")


def test_an_evaluation_goes_by_rows_protocols_and_seeds(mine: Workspace) -> None:
    recipe = recipe_of(mine)
    recipe.evaluation = Evaluation(
        protocols=["strict", "refit"],
        seeds=[0, 1],
        recommenders=["retriever", "content_only", "sasrec", "item_knn"],
        one_seed=["item_knn"],
        baselines={"sasrec": {"epochs": 2}, "item_knn": {"window": 3}},
        claims=["item_knn"],
    )
    artifact, _ = evaluate(mine, recipe)
    summary = pd.read_parquet(artifact.path / "summary.parquet").query("metric == 'recall@10'")
    seeds = summary.set_index(["protocol", "recommender"])["seeds"]
    assert seeds["strict", "retriever"] == seeds["refit", "sasrec"] == seeds["refit", "retriever (content only)"] == 2
    assert seeds["strict", "item_knn"] == seeds["refit", "item_knn"] == 1
    shown = pd.read_parquet(artifact.path / "metrics.parquet").set_index(["recommender", "metric"])["value"]
    assert shown["retriever", "valid"] == 1 > shown["retriever (history shown)", "valid"]
    recipe.evaluation.recommenders = ["retriever", "itemknn"]
    with pytest.raises(MmrecError, match=r"'itemknn'.*\n.*item_knn"):
        evaluate(mine, recipe)


def test_without_a_prior_there_are_recommendations_and_no_dreams(mine: Workspace) -> None:
    recipe = recipe_of(mine)
    recipe.prior = None
    (mine.root / "prior").unlink()
    stages.run(mine, recipe)
    assert not (mine.root / "prior").exists()
    measured = pd.read_parquet(mine.require("evaluation").path / "metrics.parquet")["recommender"].unique()
    assert "retriever" in measured
    assert not {"prior", "regression"} & set(measured)


def test_a_damaged_catalog_of_a_named_dataset_is_made_again(mine: Workspace) -> None:
    before = mine.require("catalog")
    file = mine.root / "catalog" / "items.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    fresh = Workspace(mine.root)
    with pytest.raises(MmrecError, match=r"items.parquet is missing or not what was written\n.*mmrec ingest"):
        fresh.require("vectors")
    assert [built for _, built in stages.ingest(fresh, recipe_of(mine))] == [True, False]
    assert fresh.require("catalog").files == before.files
    fresh.require("evaluation")


def test_what_is_encoded_says_who_has_what(mine: Workspace) -> None:
    data = stages.load_embeddings(mine)
    assert set(data.vectors) == {"text", "image", "audio"}
    assert data.present["text"].all()
    assert data.present["image"].sum() == 60
    assert data.present["audio"].sum() == 12
    for modality, vectors in data.vectors.items():
        assert vectors.shape == (72, data.spaces[modality]["dim"])
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        has = data.present[modality]
        assert (np.linalg.norm(vectors[has], axis=1) > 0).all()
        assert (vectors[~has] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(stages.load_vectors(mine), axis=1), 1, atol=1e-5)


def test_a_picture_that_is_gone_or_broken_when_it_is_encoded_is_set_aside(tmp_path: Path, tiny_workspace: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in sorted((tiny_workspace / "sources" / "pictures").glob("*.png"))[:4]:
        shutil.copy2(file, pictures)
    names = sorted(file.stem for file in pictures.iterdir())
    workspace, recipe = Workspace(tmp_path / "mine"), Recipe()
    recipe.source.catalog = pictures
    stages.ingest(workspace, recipe)
    (pictures / f"{names[0]}.png").unlink()
    cut = pictures / f"{names[1]}.png"
    cut.write_bytes(cut.read_bytes()[:200])
    assert stages.embed(workspace, recipe)[1] is True
    aside = pd.read_parquet(workspace.require("embeddings").path / "quarantine.parquet")
    assert list(zip(aside.item_id, aside.column, strict=True)) == [(names[0], "image"), (names[1], "image")]
    assert "no such file" in aside.reason[0]
    data = stages.load_embeddings(workspace)
    assert data.present["image"].tolist() == [False, False, True, True]
    assert data.present["text"].all()
    assert stages.embed(workspace, recipe)[1] is False
    shutil.copy2(tiny_workspace / "sources" / "pictures" / f"{names[1]}.png", pictures)
    assert stages.embed(workspace, recipe)[1] is True, "a picture was mended"
    assert stages.load_embeddings(workspace).present["image"].tolist() == [False, True, True, True]


def test_vectors_learn_nothing_from_what_is_asked_for_later(mine: Workspace) -> None:
    """Other validation and test items of everybody, the same vectors to the last bit."""
    recipe = recipe_of(mine)
    before = stages.load_vectors(mine)
    _, histories, split = stages.load_split(mine, recipe)
    learnt = [len(items) for items in split.train.items]
    place = {user: i for i, user in enumerate(split.train.user_ids)}
    table = pd.read_parquet(mine.require("interactions").path / "interactions.parquet")
    swapped = table.copy()
    generator = np.random.default_rng(0)
    for user, rows in table.groupby("user_id", sort=False):
        later = rows.sort_values("timestamp", kind="stable").index[learnt[place[user]] :]
        swapped.loc[later, "item_id"] = generator.permutation(swapped.loc[later, "item_id"].to_numpy())
    assert (swapped.item_id != table.item_id).sum() > 100, "nothing was changed"

    def write(folder: Path) -> None:
        shutil.copytree(mine.require("interactions").path, folder, dirs_exist_ok=True)
        (folder / "artifact.json").unlink()
        swapped.to_parquet(folder / "interactions.parquet", index=False)

    inputs = {"catalog": mine.require("catalog").fingerprint, "source": "swapped"}
    mine.build("interactions", inputs, {}, write)
    again = stages.load_split(mine, recipe)[2]
    assert all(np.array_equal(a, b) for a, b in zip(again.train.items, split.train.items, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(again.test.targets, split.test.targets, strict=True))
    assert stages.fuse(mine, recipe)[1] is True
    np.testing.assert_array_equal(stages.load_vectors(mine), before)
    assert isinstance(histories, Histories)


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        ("encoders: {audio: ear}", r"encoders.audio names 'ear'\n.*musicnn"),
        ("decoders: {image: brush}", r"decoders.image names 'brush'\n.*builtin_image"),
        ("fusion: {colour: red}", r"section fusion: .*colour"),
        ("fusion: {dim: wide}", r"section fusion: dim: .*integer"),
        ("tokenizer: {name: letters}", r"section tokenizer: .*'letters'.*residual_kmeans"),
        ("tokenizer: {levels: 0}", r"section tokenizer: levels=0"),
        ("retriever: {dropout: 30}", r"section retriever: dropout: .*less than 1"),
        ("retriever: {dim: 130}", r"section retriever: dim=130 is not a multiple of heads=4"),
        ("retriever: {choose_at: 0, epochs: ten}", r"epochs: .*; choose_at: "),
        ("prior: {steps: 0}", r"section prior: steps"),
        ("prior: {heads: 3}", r"section prior: context_width=128 is not a multiple of heads=3"),
        ("evaluation: {recommenders: [item_nn]}", r"evaluation names 'item_nn'\n.*item_knn"),
        ("evaluation: {baselines: {prior: {steps: 8}}}", r"evaluation.baselines names 'prior'\n.*item_knn"),
        ("evaluation: {baselines: {item_knn: {colour: red}}}", r"evaluation.baselines.item_knn: .*colour"),
        ("evaluation: {baselines: {sasrec: {dropout: 30}}}", r"evaluation.baselines.sasrec: dropout: .*less than 1"),
        ("evaluation: {recommenders: [retriever], claims: [item_knn]}", r"claims names 'item_knn'.*\n.*recommenders"),
    ],
)
def test_a_slip_in_the_recipe_is_told_before_anything_is_done(tmp_path: Path, slip: str, told: str) -> None:
    (tmp_path / "recipe.yaml").write_text(slip)
    with pytest.raises(MmrecError, match=told):
        stages.run(Workspace(tmp_path / "workspace"), Recipe.load(tmp_path / "recipe.yaml"))
    assert not (tmp_path / "workspace").exists()


def test_numbers_as_yaml_reads_them() -> None:
    """2e-3 without a point is words to YAML."""
    from retrieval.model import RetrieverConfig

    config = stages.configure(RetrieverConfig, {"learning_rate": "2e-3", "stop_after": 3.0}, "retriever")
    assert config == RetrieverConfig(learning_rate=0.002, stop_after=3)


def test_an_evaluation_claims_only_what_it_measured(mine: Workspace) -> None:
    recipe = recipe_of(mine)
    verdicts = {}
    for names in (["retriever", "popularity"], ["popularity"]):
        recipe.evaluation = Evaluation(recommenders=names, ks=[5])
        artifact, _ = evaluate(mine, recipe)
        verdicts[len(names)] = json.loads((artifact.path / "verdicts.json").read_text())
    assert len(verdicts[2]) == 1
    assert "popularity" in verdicts[2][0]
    assert verdicts[1] == []


def test_a_recipe_without_a_source(tmp_path: Path) -> None:
    with pytest.raises(MmrecError, match="names no source"):
        stages.ingest(Workspace(tmp_path), Recipe())


def test_pairs_of_items_used_together() -> None:
    assert stages.used_together([np.array([1, 2, 3]), np.array([7])], window=2).tolist() == [[1, 2], [2, 3], [1, 3]]
    assert stages.used_together([], window=2).shape == (0, 2)


def test_the_map_is_the_same_for_the_same_seed() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.testing.assert_array_equal(stages.flat_map(vectors, 3), stages.flat_map(vectors, 3))
    for n in (1, 2, 5):
        assert stages.flat_map(vectors[:n], 0).shape == (n, 2)
