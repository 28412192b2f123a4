from pathlib import Path

import pytest
import yaml

from mmrec.config import Encoders, Evaluation, Recipe, Source
from mmrec.errors import MmrecError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def recipe(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nmae: x", "nmae: Extra inputs are not permitted"),
        ("source: {catalogue: items.csv}", "source.catalogue"),
        ("encoders: {video: x}", "encoders.video"),
        ("evaluation: {k: [10]}", "evaluation.k"),
        ("seed: many", "seed: "),
        ("split: random", "split: "),
        ("- a list", "dictionary"),
        ("name: [", "cannot read the recipe"),
        ("source: {like_at: loud}", "source.like_at"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    file = recipe(tmp_path, text)
    with pytest.raises(MmrecError) as caught:
        Recipe.load(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "To mend it:" in str(caught.value)


def test_every_wrong_name_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(MmrecError, match=r"source\.speed: .*; colour: "):
        Recipe.load(recipe(tmp_path, "colour: red\nsource: {speed: 3}"))


@pytest.mark.parametrize("data", [None, b"\xff\xfe\x00", b"directory"])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "recipe.yaml"
    if data == b"directory":
        file.mkdir()
    elif data is not None:
        file.write_bytes(data)
    with pytest.raises(MmrecError, match="cannot read the recipe"):
        Recipe.load(file)


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert Recipe.load(recipe(tmp_path, "")) == Recipe()


def test_it_reads_back_what_it_wrote(tmp_path: Path) -> None:
    full = Recipe(
        name="Ünïcode: a #1 list",
        seed=7,
        source=Source(
            catalog=tmp_path / "my items.csv",
            log=tmp_path / "log.csv",
            columns={"sku": "id"},
            like_at=3.5,
            simulated=True,
        ),
        split="by_time",
        encoders=Encoders(text=None, image="open_clip:ViT-B-32/laion2b"),
        fusion={"dim": 32},
        tokenizer={"name": "residual_kmeans", "levels": 2},
        prior={"steps": 10, "learning_rate": 1e-3},
        index="HNSW32",
        evaluation=Evaluation(seeds=[0, 1], people=50),
    )
    for written in (full, Recipe()):
        written.save(tmp_path / "deep" / "recipe.yaml")
        assert Recipe.load(tmp_path / "deep" / "recipe.yaml") == written
    full.save(tmp_path / "recipe.yaml")
    kept = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert "retriever" not in kept, "only what differs from the defaults is kept"


def test_relative_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = recipe(tmp_path, "source: {catalog: data/items.csv, log: ../log.csv, media_root: /absolute}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = Recipe.load(Path("../recipe.yaml")).source
    assert source.catalog == tmp_path / "data" / "items.csv"
    assert source.log == tmp_path.parent / "log.csv"
    assert source.media_root == Path("/absolute")
    Recipe.load(file).save(tmp_path / "elsewhere" / "recipe.yaml")
    assert Recipe.load(tmp_path / "elsewhere" / "recipe.yaml").source == source, "a moved copy means the same files"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_repository_are_sound(file: Path) -> None:
    from mmrec.stages import check

    loaded = Recipe.load(file)
    assert loaded.name == file.stem
    check(loaded)


def test_the_repository_has_recipes() -> None:
    assert {file.stem for file in RECIPES} >= {"demo"}
