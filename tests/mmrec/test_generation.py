"""Batch jobs over the small, really built workspace. That a killed job goes on is in test_kill.py."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmrec import Dials, Recommender
from mmrec.errors import MmrecError
from mmrec.generation import _folder_name, generate, origin_of, save, sound_bytes

COLUMNS = {"user", "file", "seed", "text", "avoid", "number", "steps", "decoder", "embedding", "novelty", "grounded"}
COLUMNS |= {"weights", "edit", "strength", "checks"}


@pytest.fixture(scope="module")
def opened(tiny_workspace: Path) -> Recommender:
    return Recommender.load(tiny_workspace)


@pytest.fixture(scope="module")
def people(opened: Recommender) -> list[str]:
    return opened.histories.user_ids[:2]


@pytest.fixture(scope="module")
def pictures(opened: Recommender, people: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    wish = {"text": "a happy animal", "avoid": "food", "dials": Dials(text=2.0)}
    generate(opened, "image", people, folder, per_user=2, steps=2, seed=3, **wish)
    return folder


def test_the_manifest_tells_everything(opened: Recommender, people: list[str], pictures: Path) -> None:
    rows = pq.read_table(pictures / "manifest.parquet").to_pylist()
    assert [(row["user"], row["number"]) for row in rows] == [(user, n) for user in people for n in range(2)]
    assert set(rows[0]) >= COLUMNS
    assert {row["file"] for row in rows} == {f.relative_to(pictures).as_posix() for f in pictures.rglob("*.png")}
    for row in rows:
        assert (row["text"], row["avoid"], row["steps"]) == ("a happy animal", "food", 2)
        assert row["weights"] == {**row["weights"], "text": 2.0, "likes": 1.5, "avoid": 1.0, "temperature": 1.0}
        assert row["edit"] is None
        assert {"copy", "off_taste", "taste", "likeness", "presentable", "made_taste"} <= set(row["checks"])
        assert row["decoder"] == "builtin_image"
        assert len(row["embedding"]) == opened.vectors.shape[1]
        assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-4)
        assert 0 <= row["novelty"] <= 1
        met = {item for item, _ in opened.history(row["user"])}
        grounded = {place["item_id"] for place in row["grounded"]}
        assert grounded
        assert grounded <= set(opened.catalog.item_ids) - met
    assert len({row["seed"] for row in rows}) == len(people), "every person has a seed of their own"


def test_pictures_open_and_say_where_they_come_from(pictures: Path, people: list[str]) -> None:
    files = sorted(pictures.rglob("*.png"))
    assert len(files) == 4
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            origin = json.loads(picture.text["mmrec"])
            assert np.asarray(picture).std() > 1, "an empty picture"
        assert origin["made_by"] == "mmrec (generated)"
        assert origin["decoder"] == "builtin_image"
        assert origin["user"] in people
        assert origin["text"] == "a happy animal"


def test_music_plays_and_says_where_it_comes_from(opened: Recommender, people: list[str], tmp_path: Path) -> None:
    generate(opened, "audio", people[:1], tmp_path / "music", per_user=1, steps=2)
    (row,) = pq.read_table(tmp_path / "music" / "manifest.parquet").to_pylist()
    file = tmp_path / "music" / row["file"]
    with soundfile.SoundFile(file) as clip:
        samples = clip.read()
        origin = json.loads(clip.comment)
    assert file.suffix == ".ogg"
    assert origin["made_by"] == "mmrec (generated)"
    assert origin["user"] == people[0]
    assert len(samples) / clip.samplerate > 2
    assert np.abs(samples).max() > 0.01
    assert file.with_suffix(".mid").read_bytes()[:4] == b"MThd"


def test_a_clip_as_a_wave_file(opened: Recommender, people: list[str]) -> None:
    dream = opened.imagine(people[0], n=1, steps=1).dreams
    creation = opened.create(dream, medium="audio")[0]
    assert creation.clip is not None
    wave, rate = soundfile.read(io.BytesIO(sound_bytes(creation, kind="WAV")))
    assert rate == creation.clip.rate
    np.testing.assert_allclose(wave, creation.clip.samples, atol=1e-3)


def test_a_persons_pictures_do_not_depend_on_who_else_is_asked(
    opened: Recommender, people: list[str], pictures: Path, tmp_path: Path
) -> None:
    options = {"per_user": 2, "text": "a happy animal", "avoid": "food", "steps": 2, "seed": 3}
    options["dials"] = Dials(text=2.0)
    generate(opened, "image", [people[1], people[1]], tmp_path / "alone", **options)
    rows = pq.read_table(tmp_path / "alone" / "manifest.parquet").to_pylist()
    assert [row["user"] for row in rows] == [people[1]] * 2, "named twice, made once"
    for row in rows:
        assert (tmp_path / "alone" / row["file"]).read_bytes() == (pictures / row["file"]).read_bytes()
    generate(opened, "image", people[1:], tmp_path / "other", **{**options, "seed": 4})
    assert (tmp_path / "other" / rows[0]["file"]).read_bytes() != (pictures / rows[0]["file"]).read_bytes()


def test_another_job_does_not_mix_with_this_one(
    opened: Recommender, people: list[str], pictures: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    job = {"per_user": 2, "text": "a happy animal", "avoid": "food", "steps": 2, "seed": 3, "dials": Dials(text=2.0)}
    changes = [{"text": "something else"}, {"seed": 4}, {"per_user": 1}, {"steps": 3}, {"dials": Dials()}]
    for change in [*changes, {"edit": "pic-poodle"}, {"candidates": 1}]:
        with pytest.raises(MmrecError, match=r"holds the output of another job\n.*--out"):
            generate(opened, "image", people, folder, **{**job, **change})
    with pytest.raises(MmrecError, match="another job"):
        generate(opened, "audio", people, folder, **job)
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
    generate(opened, "image", people, folder, **job)
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "manifest.parquet"} == {
        f: data for f, data in before.items() if f.name != "manifest.parquet"
    }


def test_the_output_does_not_depend_on_the_size_of_the_batch(opened: Recommender, tmp_path: Path) -> None:
    people = opened.histories.user_ids[:5]
    folders = {}
    for size in (1, 2, 16):
        folders[size] = tmp_path / str(size)
        generate(opened, "image", people, folders[size], per_user=1, steps=2, candidates=2, batch_size=size)
    files = sorted(f.relative_to(folders[1]) for f in folders[1].rglob("*") if f.is_file())
    assert len(files) == 2 * len(people) + 2
    for size in (2, 16):
        assert files == sorted(f.relative_to(folders[size]) for f in folders[size].rglob("*") if f.is_file())
        for file in files:
            assert (folders[size] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_everybody_gets_a_version_of_one_item(opened: Recommender, people: list[str], tmp_path: Path) -> None:
    options = {"per_user": 1, "steps": 2, "edit": "pic-poodle", "strength": 0.2}
    generate(opened, "image", people, tmp_path / "poodles", **options)
    rows = pq.read_table(tmp_path / "poodles" / "manifest.parquet").to_pylist()
    poodle = opened.vectors[opened.catalog.index["pic-poodle"]]
    for row in rows:
        assert (row["edit"], row["strength"]) == ("pic-poodle", 0.2)
        assert np.array(row["embedding"]) @ poodle > 0.5
        assert origin_of(tmp_path / "poodles" / row["file"])["edit"] == "pic-poodle"
    assert rows[0]["embedding"] != rows[1]["embedding"]
    with pytest.raises(MmrecError, match="no item 'nothing'"):
        generate(opened, "image", people, tmp_path / "none", edit="nothing")
    assert not (tmp_path / "none").exists()


def test_a_file_that_does_not_read_back_is_not_passed_on(
    opened: Recommender, people: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    creation = opened.create(opened.imagine(people[0], n=1, steps=1).dreams, medium="image", candidates=1)[0]
    file = save(creation, tmp_path / "new" / "one", {"text": "ä ☃"})
    assert origin_of(file) == {"made_by": "mmrec (generated)", "decoder": "builtin_image", "text": "ä ☃"}
    monkeypatch.setattr("mmrec.generation.origin_of", lambda path: {})
    with pytest.raises(MmrecError, match="does not read back"):
        save(creation, tmp_path / "two", {})


def test_an_unknown_person_is_told_before_anything_is_made(
    opened: Recommender, people: list[str], tmp_path: Path
) -> None:
    with pytest.raises(MmrecError, match="the log has no user 'nobody'"):
        generate(opened, "image", [*people, "nobody"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


NAMES = [
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/absolute",
    "a/b",
    "Zoë ☃",
    "job.json",
    "a\\b",
    "x" * 500,
    "nul\0",
    "plain-1",
]


def test_any_name_of_a_person_is_one_folder_inside() -> None:
    folders = [_folder_name(name) for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    for folder in folders:
        assert folder
        assert len(folder) < 100
        assert set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert _folder_name("plain-1") == "plain-1"
    assert _folder_name("a/b") != _folder_name("a_b")
    assert _folder_name("a_b") == "a_b"


def test_strange_names_stay_inside_the_folder(opened: Recommender, tmp_path: Path) -> None:
    import copy

    strange = copy.copy(opened)
    row = opened._user_rows[opened.histories.user_ids[0]]
    strange.__dict__["_user_rows"] = dict.fromkeys(("../../up", "..", "Zoë/☃"), row)
    generate(strange, "audio", list(strange._user_rows), tmp_path / "a" / "b", per_user=1, steps=1)
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b"]
    rows = pq.read_table(tmp_path / "a" / "b" / "manifest.parquet").to_pylist()
    assert [row["user"] for row in rows] == ["../../up", "..", "Zoë/☃"]
    assert all((tmp_path / "a" / "b" / row["file"]).resolve().is_relative_to(tmp_path / "a" / "b") for row in rows)
