import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmrec.catalog import Catalog, ingest_catalog
from mmrec.errors import CatalogError
from mmrec.sources import MAX_CELL, MAX_TEXT


def picture(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def sound(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 4000), 8000)
    return path.read_bytes()


def huge_png(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def quarantine(directory: Path) -> list[dict[str, str]]:
    return pq.read_table(directory / "quarantine.parquet").to_pylist()


def test_a_folder_of_media_is_a_catalog(tmp_path: Path) -> None:
    root = tmp_path / "media"
    picture(root / "pets" / "old-cat.jpg")
    sound(root / "pets" / "old-cat.wav")
    (root / "pets" / "old-cat.txt").write_text("It purrs.")
    picture(root / "bee.png", 1)
    picture(root / "bee.jpg", 2)
    picture(root / ".hidden.jpg")
    (root / "notes.pdf").write_bytes(b"%PDF")
    report = ingest_catalog(root, tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert catalog.item_ids == ["bee", "bee.png", "pets/old-cat"]
    assert catalog.titles[2] == "old cat"
    assert catalog.texts[2] == "It purrs.\npets"
    assert catalog.metadata[2] == {"folder": "pets"}
    assert catalog.image_path(2) == (root / "pets" / "old-cat.jpg").resolve()
    assert catalog.audio_path(2) == (root / "pets" / "old-cat.wav").resolve()
    assert catalog.audio_path(0) is None
    assert catalog.index["pets/old-cat"] == 2
    assert (report.items, report.with_image, report.with_audio, report.quarantined) == (3, 3, 1, 0)
    assert ".pdf" in str(report)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_is_a_catalog_whatever_its_format(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "pics" / "a.jpg")
    rows = [
        {"SKU": "7", "Name": 'Cat, "old"', "description": "one\ntwo", "image_path": "pics/a.jpg", "price": "3"},
        {"SKU": "8", "Name": "Bée", "description": "", "image_path": "", "price": ""},
    ]
    path = tmp_path / f"items{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    report = ingest_catalog(path, tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert report.quarantined == 0, str(report)
    assert catalog.item_ids == ["7", "8"]
    assert catalog.titles == ['Cat, "old"', "Bée"]
    assert catalog.describe(0) == 'Cat, "old". one\ntwo'
    assert catalog.images == ["pics/a.jpg", None]
    assert catalog.metadata == [{"price": "3"}, {}]
    assert catalog.media_root == tmp_path.resolve()


def test_a_catalog_reads_its_own_table_back(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "x" / "a.jpg")
    ingest_catalog(tmp_path / "in", tmp_path / "one")
    ingest_catalog(tmp_path / "one" / "items.parquet", tmp_path / "two", media_root=tmp_path / "in")
    assert Catalog.load(tmp_path / "one") == Catalog.load(tmp_path / "two")


def test_a_saved_dataset_with_pictures_and_sounds_is_a_catalog(tmp_path: Path) -> None:
    import datasets

    image, audio = picture(tmp_path / "a.jpg"), sound(tmp_path / "a.wav")
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(decode=False),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = [
        {"id": "i0", "image": None, "audio": {"bytes": audio, "path": None}, "text": "zero", "label": 1},
        {"id": "i1", "image": {"bytes": image, "path": "a.jpg"}, "audio": None, "text": "one", "label": 0},
        {"id": "i2", "image": {"bytes": image[:300], "path": "b.jpg"}, "audio": None, "text": "", "label": None},
    ]
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(rows, features=features).cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(tmp_path / "hub" / "train-0.parquet")
    for source in (tmp_path / "saved", tmp_path / "hub"):
        out = tmp_path / f"out-{source.name}"
        report = ingest_catalog(source, out)
        catalog = Catalog.load(out)
        assert catalog.item_ids == ["i0", "i1"]
        labels = ["yes", "no"] if source.name == "saved" else [1, 0]  # plain Parquet does not know the names
        assert catalog.metadata == [{"label": label} for label in labels]
        assert catalog.media_root == (out / "media").resolve()
        image_path, audio_path = catalog.image_path(1), catalog.audio_path(0)
        assert image_path is not None
        assert image_path.read_bytes() == image
        assert audio_path is not None
        assert audio_path.read_bytes() == audio
        assert report.left_out == 1
        assert {row["item_id"] for row in quarantine(out)} == {"i2"}
    os.rename(tmp_path / "out-saved", tmp_path / "moved")  # embedded media move with the catalog
    moved = Catalog.load(tmp_path / "moved").image_path(1)
    assert moved is not None
    assert moved.is_file()


def test_a_dataset_without_ids_is_numbered(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    ingest_catalog(tmp_path / "saved", tmp_path / "out")
    assert Catalog.load(tmp_path / "out").item_ids == ["saved-1", "saved-2"]


def test_bad_media_are_quarantined_and_the_rest_of_the_item_stays(tmp_path: Path) -> None:
    root = tmp_path / "media"
    good = picture(root / "good.jpg")
    (root / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "silent.wav").write_bytes(b"")
    huge_png(root / "huge.png")
    (root / "told.jpg").write_bytes(b"no picture")
    (root / "told.txt").write_text("words remain")
    (root / "latin.txt").write_bytes(b"caf\xe9")
    report = ingest_catalog(root, tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert catalog.item_ids == ["good", "told"]
    assert catalog.images == ["good.jpg", None]
    told = {(row["item_id"], row["column"]): row["reason"] for row in quarantine(tmp_path / "out")}
    assert "truncated" in told["cut", "image"].lower()
    assert "0 bytes" in told["silent", "audio"]
    assert "pixels allowed" in told["huge", "image"]
    assert ("told", "image") in told
    assert "UTF-8" in told["latin", "text"]
    assert {item for item, column in told if column == ""} == {"cut", "silent", "huge", "latin"}
    assert report.left_out == 4


def test_a_missing_id_column_is_named_with_those_found_and_the_mend(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("code,title\n1,Cat\n")
    with pytest.raises(CatalogError) as caught:
        ingest_catalog(tmp_path / "items.csv", tmp_path / "out")
    assert "no column 'id'" in str(caught.value)
    assert "code, title" in str(caught.value)
    assert "=id" in caught.value.mend
    ingest_catalog(tmp_path / "items.csv", tmp_path / "out", columns={"code": "id"})
    assert Catalog.load(tmp_path / "out").item_ids == ["1"]
    with pytest.raises(CatalogError, match="no column 'cod'"):
        ingest_catalog(tmp_path / "items.csv", tmp_path / "out", columns={"cod": "id"})


def test_bad_rows_are_quarantined_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(
        b"id,title,text\n"
        b"a,Cat,\n"
        b"a,Second cat,\n"  # 3: twice
        b" ,Nameless,\n"  # 4: empty
        b"b,two cells\n"  # 5: ragged
        b"c,caf\xe9,\n"  # 6: not UTF-8
        b"\n"
        b'd,"over\ntwo lines",\n'  # 8 and 9
        b"e,,\n"  # 10: nothing
        b"f,Fine,\n"
    )
    report = ingest_catalog(tmp_path / "items.csv", tmp_path / "out")
    assert Catalog.load(tmp_path / "out").item_ids == ["a", "d", "f"]
    told = [(row["source"], row["item_id"], row["column"], row["reason"]) for row in quarantine(tmp_path / "out")]
    assert told[0] == ("items.csv line 3", "a", "id", "is the id of items.csv line 2 already")
    assert told[1] == ("items.csv line 4", "", "id", "is empty")
    assert told[2][0] == "items.csv line 5"
    assert "2 cells where the header has 3" in told[2][3]
    assert told[3][0] == "items.csv line 6"
    assert told[3][3] == "is not UTF-8"
    assert told[4][:2] == ("items.csv line 10", "e")
    assert len(told) == report.left_out == 5


def test_bad_json_lines_are_quarantined(tmp_path: Path) -> None:
    lines = ['{"id": 1, "title": "Cat"}', "{broken", "[1]", '{"id": null, "title": "x"}', '{"id": true, "title": "x"}']
    lines += ['{"id": "s", "title": "\\ud800 lone", "m": NaN, "deep": ' + "[" * 5000 + "]" * 5000 + "}"]
    lines += ['{"id": "t", "title": "\\ud800 lone", "price": NaN}']
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    ingest_catalog(tmp_path / "items.jsonl", tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert catalog.item_ids == ["1", "t"]
    assert catalog.metadata[1] == {}
    assert [row["source"] for row in quarantine(tmp_path / "out")] == [f"items.jsonl line {n}" for n in range(2, 7)]


def test_paths_stay_inside_the_media_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    picture(root / "in" / "a.jpg")
    picture(tmp_path / "secret.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    paths = {
        "ok": "in/../in/a.jpg",
        "absolute": str(root / "in" / "a.jpg"),
        "climbs": "../secret.jpg",
        "outside": str(tmp_path / "secret.jpg"),
        "link": "link.jpg",
        "loop": "loop.jpg",
        "missing": "nope.jpg",
        "folder": "in",
        "pipe": "pipe.jpg",
        "address": "https://example.org/a.jpg",
        "nul": "a\0.jpg",
        "long": "a" * 5000,
    }
    rows = [{"id": name, "title": name, "image": path} for name, path in paths.items()]
    (root / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest_catalog(root, tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert catalog.item_ids == list(paths)  # a title is left to each
    assert [i for i, image in zip(catalog.item_ids, catalog.images, strict=True) if image] == ["ok", "absolute"]
    assert set(catalog.images) == {"in/a.jpg", None}
    told = {row["item_id"]: row["reason"] for row in quarantine(tmp_path / "out")}
    assert set(told) == set(paths) - {"ok", "absolute"}
    for name in ("climbs", "outside", "link"):
        assert "leads out of the media root" in told[name]
    assert "address" in told["address"]


def test_a_folder_does_not_follow_links_out(tmp_path: Path) -> None:
    picture(tmp_path / "media" / "a.jpg")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "media" / "a.txt").symlink_to(tmp_path / "secret.txt")
    picture(tmp_path / "media" / "b.jpg")
    ingest_catalog(tmp_path / "media", tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert "secret" not in "".join(catalog.texts)
    assert [row["item_id"] for row in quarantine(tmp_path / "out")] == ["a"]
    assert catalog.item_ids == ["a", "b"]
    assert catalog.images == ["a.jpg", "b.jpg"]


def test_oversized_text_is_cut_and_an_endless_line_is_quarantined(tmp_path: Path) -> None:
    with (tmp_path / "items.csv").open("w") as file:
        file.write("id,title,text\n")
        file.write(f"long,Long,{'word ' * (MAX_TEXT // 4)}\n")
        file.write("endless,Endless,")
        for _ in range(MAX_CELL // 2**20 + 1):
            file.write("x" * 2**20)
        file.write("\nlast,Last,\n")
        file.write('open,"a quote that nobody closes\n')
    ingest_catalog(tmp_path / "items.csv", tmp_path / "out")
    catalog = Catalog.load(tmp_path / "out")
    assert catalog.item_ids == ["long", "last"]
    assert MAX_TEXT - 1 <= len(catalog.texts[0]) <= MAX_TEXT
    told = [(row["source"], row["reason"]) for row in quarantine(tmp_path / "out")]
    assert "was cut" in told[0][1]
    assert told[1][0] == "items.csv line 3"
    assert "longer than" in told[1][1]
    assert told[2][0] == "items.csv line 5"


def test_what_is_no_catalog_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not")
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "utf16.csv").write_text("id,title\n1,a\n", encoding="utf-16")
    (tmp_path / "twice.csv").write_text("id,title,title\n1,a,b\n")
    (tmp_path / "bad.csv").write_text("id,title\n,a\n,b\n")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "state.json").write_text("{}")
    for name in ("empty", "nowhere", "x.parquet", "x.xlsx", "utf16.csv", "twice.csv", "bad.csv", "hf"):
        with pytest.raises(CatalogError) as caught:
            ingest_catalog(tmp_path / name, tmp_path / "out")
        assert caught.value.mend, name
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "items.parquet").write_bytes(b"PAR1")
    for text in ("{", "[]", "{}", '{"media_root": "."}'):
        (tmp_path / "broken" / "catalog.json").write_text(text)
        with pytest.raises(CatalogError, match="mmrec ingest"):
            Catalog.load(tmp_path / "broken")
    with pytest.raises(CatalogError, match="mmrec ingest"):
        Catalog.load(tmp_path / "nowhere")


def test_progress_is_told_and_the_result_is_the_same_every_time(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "media" / f"{i}.png", i)
    seen: list[tuple[int, int]] = []
    ingest_catalog(tmp_path / "media", tmp_path / "one", progress=lambda done, total: seen.append((done, total)))
    ingest_catalog(tmp_path / "media", tmp_path / "two")
    assert seen[-1] == (20, 20)
    for name in ("items.parquet", "quarantine.parquet", "catalog.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_more_items_go_behind_and_keep_their_media(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "one.jpg")
    picture(tmp_path / "b" / "two.jpg")
    for name in "ab":
        ingest_catalog(tmp_path / name, tmp_path / f"out-{name}")
    a, b = Catalog.load(tmp_path / "out-a"), Catalog.load(tmp_path / "out-b")
    both = a.extend(b)
    assert both.item_ids == ["one", "two"]
    assert both.image_path(0) == a.image_path(0)
    assert both.image_path(1) == b.image_path(0)
    with pytest.raises(CatalogError, match="'one'"):
        both.extend(a)


def test_column_names_that_are_no_csv_are_refused(tmp_path: Path) -> None:
    """A carriage return among the names, or a quotation mark left open before one further down."""
    for content in (b"id,ti\rtle\na,b\n", b'id,"title\na,b"\rc\n'):
        (tmp_path / "items.csv").write_bytes(content)
        with pytest.raises(CatalogError, match=r"column names of .* cannot be read"):
            ingest_catalog(tmp_path / "items.csv", tmp_path / "out")


def test_a_parquet_with_a_damaged_page_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": [f"item {i}" for i in range(2000)]}), file, compression="zstd", row_group_size=500)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    file.write_bytes(data)
    with pytest.raises(CatalogError, match=r"(?s)items.parquet cannot be read as Parquet beyond row \d+.*\n.*anew"):
        ingest_catalog(file, tmp_path / "out")
