import csv
import functools
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mmrec.catalog import Catalog, ingest_catalog
from mmrec.datasets import DATASETS, DatasetFiles, movielens, prepare
from mmrec.datasets.demo import build_demo
from mmrec.datasets.simulate import simulate_people
from mmrec.errors import DatasetMissing
from mmrec.interactions import ingest_interactions, leave_one_out, load_histories

DATA = Path(os.environ.get("MMREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Cité des enfants perdus, La (1995)|01-Jan-1995||http://x|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0|0\n"
    "3|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
)
U_DATA = "196\t1\t5\t881250949\n196\t2\t1\t881250950\n22\t3\t3\t881250951\n"
ATOMIC_ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    "2\tCité des enfants perdus, La\t1995\tAdventure Sci-Fi\n"
    "3\tunknown\t\tunknown\n"
)
ATOMIC_INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + U_DATA


def official_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.item", U_ITEM.encode("latin-1"))
        archive.writestr("ml-100k/u.data", U_DATA)
        archive.writestr("ml-100k/README", "research only")
    return path


def wheel(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.item", ATOMIC_ITEM)
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", ATOMIC_INTER)
        archive.writestr("recbole-1.2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        archive.writestr(
            "recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("recbole-1.2.1.dist-info/RECORD", "")
    return path


def ingested(files: DatasetFiles, out: Path) -> Catalog:
    ingest_catalog(files.catalog, out / "catalog", media_root=files.media_root)
    catalog = Catalog.load(out / "catalog")
    ingest_interactions(files.interactions, out / "interactions", catalog.item_ids)
    return catalog


# ML-100K --------------------------------------------------------------------------------------------------------------


def check_ml100k(files: DatasetFiles, out: Path) -> None:
    catalog = ingested(files, out)
    assert catalog.item_ids == ["1", "2", "3"]
    assert catalog.titles == ["Toy Story", "La Cité des enfants perdus", "unknown"]
    assert catalog.metadata[0]["genres"] == ["Animation", "Children's", "Comedy"]
    assert catalog.metadata[1]["year"] == 1995
    assert "year" not in catalog.metadata[2]
    histories = load_histories(out / "interactions", catalog.index)
    assert histories.user_ids == ["196", "22"]
    assert histories.preferences[0].tolist() == [1, -1]
    assert histories.times[1].tolist() == [881250951.0]


@pytest.mark.parametrize("kind", ["zip", "folder", "wheel"])
def test_ml100k_is_read_from_each_of_its_forms(tmp_path: Path, kind: str) -> None:
    source = wheel(tmp_path / "recbole.whl") if kind == "wheel" else official_zip(tmp_path / "ml-100k.zip")
    if kind == "folder":
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "unpacked")
        source = tmp_path / "unpacked"
    check_ml100k(prepare("ml100k", tmp_path / "out", source=str(source)), tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *args: None  # type: ignore[method-assign]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_ml100k_is_read_from_an_address_up_to_a_size(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    official_zip(tmp_path / "ml-100k.zip")
    seen: list[tuple[int, int]] = []
    files = prepare(
        "ml100k", tmp_path / "out", source=f"{server}/ml-100k.zip", progress=lambda *tick: seen.append(tick)
    )
    check_ml100k(files, tmp_path)
    assert seen[-1][0] == seen[-1][1] == (tmp_path / "ml-100k.zip").stat().st_size
    with pytest.raises(DatasetMissing, match="404"):
        prepare("ml100k", tmp_path / "no", source=f"{server}/nothing.zip")
    monkeypatch.setattr(movielens, "MAX_DOWNLOAD", 100)
    with pytest.raises(DatasetMissing, match="larger than 100 bytes"):
        prepare("ml100k", tmp_path / "no", source=f"{server}/ml-100k.zip")


def test_ml100k_comes_with_pip_where_no_source_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "index" / "recbole-1.2.1-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    check_ml100k(prepare("ml100k", tmp_path / "out", cache=tmp_path / "cache"), tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cleared"))
    check_ml100k(prepare("ml100k", tmp_path / "out", cache=tmp_path / "cache"), tmp_path)  # kept
    with pytest.raises(DatasetMissing, match="pip could not get") as caught:
        prepare("ml100k", tmp_path / "out", cache=tmp_path / "other")
    assert "Give a source" in caught.value.mend


def test_a_hostile_archive_neither_climbs_nor_explodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "climbs.zip", "w") as archive:
        archive.writestr("../../escaped/u.item", U_ITEM.encode("latin-1"))
        archive.writestr("/absolute/u.data", U_DATA)
        archive.writestr("../evil.txt", "evil")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    check_ml100k(prepare("ml100k", tmp_path / "deep" / "down" / "out", source=tmp_path / "climbs.zip"), tmp_path)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list(tmp_path.rglob("escaped"))
    monkeypatch.setattr(movielens, "MAX_MEMBER", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-100k/u.data", bytes(2**22))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    with pytest.raises(DatasetMissing, match="unpacks to more than"):
        prepare("ml100k", tmp_path / "out", source=tmp_path / "bomb.zip")


def test_what_is_not_ml100k_says_so(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>not found</html>")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", U_DATA)
    for name in ("page.zip", "empty", "half.zip", "nowhere"):
        with pytest.raises(DatasetMissing) as caught:
            prepare("ml100k", tmp_path / "out", source=tmp_path / name)
        assert caught.value.mend, name


# Datasets that are brought along --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["movielens_posters", "amazon_beauty", "amazon_sports", "emotify", "oasis_beauty"])
def test_an_absent_dataset_says_where_it_was_looked_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMREC_DATA", raising=False)
    with pytest.raises(DatasetMissing, match="MMREC_DATA"):
        prepare(name, tmp_path / "out")
    monkeypatch.setenv("MMREC_DATA", str(tmp_path))
    with pytest.raises(DatasetMissing, match=str(tmp_path)):
        prepare(name, tmp_path / "out")


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as caught:
        prepare("netflix", tmp_path)
    assert all(name in caught.value.mend for name in DATASETS)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{name} is not in MMREC_DATA")


@needs("amazon_p5")
def test_amazon_beauty_is_what_the_papers_use(tmp_path: Path) -> None:
    catalog = ingested(prepare("amazon_beauty", tmp_path, data=DATA), tmp_path)
    split = leave_one_out(load_histories(tmp_path / "interactions", catalog.index))
    assert (len(catalog), len(split.train), len(split.test)) == (12_101, 22_363, 22_363)
    assert sum(map(len, split.train.items)) == 198_502 - 2 * 22_363
    assert all(catalog.titles[i] for i in range(10))
    assert catalog.item_ids[int(split.test.targets[0][0])] == "5"  # the first line of the file is 1 1 2 3 4 5


@needs("movielens_posters")
def test_movielens_with_posters(tmp_path: Path) -> None:
    catalog = ingested(prepare("movielens_posters", tmp_path, data=DATA, ratings="ml100k"), tmp_path)
    histories = load_histories(tmp_path / "interactions", catalog.index)
    assert (len(catalog), len(histories), sum(map(len, histories.items))) == (1682, 943, 100_000)
    assert sum(image is not None for image in catalog.images) == 1627
    path = catalog.image_path(catalog.titles.index("Toy Story"))
    assert path is not None
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"


@needs("emotify")
def test_emotify(tmp_path: Path) -> None:
    catalog = ingested(prepare("emotify", tmp_path, data=DATA), tmp_path)
    histories = load_histories(tmp_path / "interactions", catalog.index)
    assert (len(catalog), len(histories)) == (400, 466)
    assert all(audio is not None for audio in catalog.audios)
    assert {-1.0, 0.0, 1.0} == set(np.concatenate(histories.preferences).tolist())


@needs("oasis_beauty")
def test_oasis_beauty(tmp_path: Path) -> None:
    catalog = ingested(prepare("oasis_beauty", tmp_path, data=DATA), tmp_path)
    histories = load_histories(tmp_path / "interactions", catalog.index)
    assert (len(catalog), len(histories), sum(map(len, histories.items))) == (152, 757, 27_708)
    assert all(image is not None for image in catalog.images)
    assert len(set(map(len, histories.items))) > 1
    everything = ingested(prepare("oasis_beauty", tmp_path / "all", data=DATA, pictures_only=False), tmp_path / "all")
    assert len(everything) == 900
    assert sum(image is not None for image in everything.images) == 152


# The demo and its simulated people ------------------------------------------------------------------------------------


def shelf(families: int = 6, leaves: int = 5, size: int = 8) -> list[dict[str, object]]:
    return [
        {"item_id": f"{f}-{leaf}-{i}", "metadata": {"group": f"f{f}", "subgroup": f"l{leaf}"}}
        for f in range(families)
        for leaf in range(leaves)
        for i in range(size)
    ]


def test_simulated_people_are_the_same_for_the_same_seed() -> None:
    one, two = simulate_people(shelf(), users=30, seed=3), simulate_people(shelf(), users=30, seed=3)
    assert one.equals(two)
    assert not one.equals(simulate_people(shelf(), users=30, seed=4))
    more = simulate_people(shelf(), users=35, seed=3)
    assert more[more["user"] <= "sim-0030"].equals(one)  # a person is the same among more people


def test_simulated_logs_are_well_formed() -> None:
    log = simulate_people(shelf(), users=60)
    assert list(log.columns) == ["user", "item", "time", "rating"]
    assert log["user"].nunique() == 60
    assert log["user"].iloc[0] == "sim-0001"
    assert log.groupby("user").size().between(20, 45).all()
    assert not log.duplicated(["user", "item"]).any()
    assert log["rating"].between(1, 5).all()
    assert log.groupby("user")["time"].apply(lambda times: times.is_monotonic_increasing).all()
    tiny = simulate_people(shelf(1, 1, 3), users=4)
    assert (tiny.groupby("user").size() == 3).all()  # nobody meets more than there is
    with pytest.raises(ValueError):
        simulate_people([])


def test_simulated_people_have_tastes_habits_and_dislikes() -> None:
    log = simulate_people(shelf(), users=300)
    log["family"], log["leaf"] = log["item"].str[0], log["item"].str[:3]
    following = log[log["user"] == log["user"].shift(-1)]
    after = log.shift(-1).loc[following.index]
    stays = (following["leaf"] == after["leaf"]).mean()
    shuffled = log.sample(frac=1, random_state=0).sort_values("user", kind="stable")
    by_chance = (shuffled["leaf"] == shuffled["leaf"].shift(-1)).mean()
    assert stays > by_chance + 0.15  # runs in one leaf, beyond what a person's tastes alone would give
    place, next_place = following["item"].str[4:].astype(int), after["item"].str[4:].astype(int)
    forward = ((next_place - place) % 8 == 1)[following["leaf"] == after["leaf"]].mean()
    assert forward > 0.3  # one goes on to the next item of a leaf; chance is 1 in 7
    favourite = log[log["rating"] >= 4].groupby("user")["family"].agg(lambda families: families.mode()[0])
    in_favourite = log["family"] == log["user"].map(favourite)
    assert in_favourite.mean() > 0.3  # chance is 1 in 6
    assert log[in_favourite]["rating"].mean() > log[~in_favourite]["rating"].mean() + 0.3  # the others hold tastes too
    assert 0.05 < (log["rating"] <= 2).mean() < 0.25
    counts = log["item"].value_counts()
    assert counts.head(24).sum() > 1.8 * 24 / 240 * counts.sum()  # a tenth of the items has far more than a tenth


def test_tastes_drift() -> None:
    log = simulate_people(shelf(), users=400)
    log["family"] = log["item"].str[0]
    log["part"] = log.groupby("user").cumcount() * 4 // log.groupby("user")["user"].transform("size")
    mixes = log.groupby(["user", "part"])["family"].value_counts(normalize=True).unstack(fill_value=0)

    def apart(a: int, b: int) -> float:
        return float((mixes.xs(a, level="part") - mixes.xs(b, level="part")).abs().sum(axis=1).mean())

    assert apart(0, 3) > apart(0, 1) + 0.05


def test_the_demo_is_real_media_and_is_built_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = {"pictures": 40, "music": 2, "seconds": 4.0, "users": 25, "size": 32}
    files = prepare("demo", tmp_path / "demo", progress=lambda *tick: seen.append(tick), **options)
    assert seen[-1][0] == seen[-1][1]
    catalog = ingested(files, tmp_path)
    assert len(catalog) == 42
    assert sum(image is not None for image in catalog.images) == 40
    assert sum(audio is not None for audio in catalog.audios) == 2
    with files.interactions.open() as file:
        assert {row["user"][:4] for row in csv.DictReader(file)} == {"sim-"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    content = {path: path.read_bytes() for path in before}
    build_demo(tmp_path / "demo", **options)  # type: ignore[arg-type]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    next(iter((tmp_path / "demo" / "music").rglob("*.ogg"))).unlink()  # as if killed half-way
    (tmp_path / "demo" / "demo.json").unlink()
    build_demo(tmp_path / "demo", **options)  # type: ignore[arg-type]
    text = {path: data for path, data in content.items() if path.suffix in (".jsonl", ".csv", ".png")}
    assert text == {path: path.read_bytes() for path in text}
    rows = [json.loads(line) for line in io.StringIO(files.catalog.read_text(encoding="utf-8"))]
    assert all((files.media_root / (row.get("image") or row["audio"])).is_file() for row in rows)
