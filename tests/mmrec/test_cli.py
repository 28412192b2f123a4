"""The command line, as a person types it: what works, and what is broken."""

import csv
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from mmrec.config import Recipe
from mmrec.workspace import Workspace

Answer = tuple[int, str, str]
COMMANDS = [
    "ingest",
    "embed",
    "tokenize",
    "train",
    "train retriever",
    "train prior",
    "train decoder",
    "index",
    "index build",
    "index add",
    "add",
]
COMMANDS += ["recommend", "imagine", "rank", "search", "show", "generate", "evaluate", "run", "app", ""]


@pytest.fixture
def mmrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command: its exit code, what it said and what it complained of. A traceback fails the test."""
    from mmrec.cli import main

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mmrec", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), said.out, said.err

    return run


@pytest.fixture
def mine(tiny_workspace: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(mmrec: Callable[..., Answer], command: str) -> None:
    code, out, _ = mmrec(*command.split(), "--help")
    assert code == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert re.search(rf"Usage: .*{command}", plain)
    assert "--help" in plain
    assert re.search(r"^ ?[A-Z].{20,}", plain.split("Usage:")[1], re.M), "no word on what it does"


def test_help_and_import_are_quick_and_light() -> None:
    code = "import sys, mmrec, mmrec.cli; print(*{'torch', 'faiss', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["ingest", "absent"], "no file or folder at"),
        (["embed"], "is no workspace"),
        (["train", "prior"], "is no workspace"),
        (["recommend", "--like", "x"], "is no workspace"),
        (["search", "x"], "is no workspace"),
        (["run"], "is no workspace"),
        (["app"], "is no workspace"),
        (["run", "absent.yaml"], "cannot read the recipe"),
        (["ingest", ".", "--column", "id"], "names no column"),
    ],
)
def test_what_cannot_work_says_so_and_how_to_mend_it(
    mmrec: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mmrec(*command)
    assert code == 1
    assert told in err
    assert "To mend it: " in err
    assert err.startswith("mmrec: ")
    assert out == ""


def test_a_workspace_that_is_a_file(mmrec: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "items.csv").write_text("id,title\na,A\n")
    code, _, err = mmrec("ingest", tmp_path / "items.csv", "-w", tmp_path / "file")
    assert code == 1
    assert str(tmp_path / "file") in err
    assert (tmp_path / "file").read_text() == "text"


def test_the_app_listens_on_this_machine_only(
    mmrec: Callable[..., Answer], tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append(arguments))
    code, out, _ = mmrec("app", "-w", tiny_workspace, "--port", 8599)
    assert code == 0
    assert "http://127.0.0.1:8599" in out
    assert {"--server.address=127.0.0.1", "--server.port=8599"} <= set(called[0])
    assert str(tiny_workspace) in called[0]
    assert Path(called[0][4]).is_file()


# -- asking ------------------------------------------------------------------------------------------------------------


def test_questions_are_answered_in_tables(mmrec: Callable[..., Answer], tiny_workspace: Path, tmp_path: Path) -> None:
    where = ("-w", tiny_workspace)
    code, out, _ = mmrec(
        "recommend", *where, "--like", "pic-poodle", "--dislike", "pic-bell", "-k", 4, "--text", "food"
    )
    assert code == 0
    assert len(re.findall(r"^ +[1-4] ", out, re.M)) == 4
    (tmp_path / "allowed.txt").write_text("pic-spoon\n\npic-bell\n")
    code, out, _ = mmrec("recommend", *where, "--like", "pic-poodle", "--allowed", tmp_path / "allowed.txt")
    assert set(re.findall(r"^ +\d +(\S+)", out, re.M)) == {"pic-spoon", "pic-bell"}
    code, out, _ = mmrec("imagine", *where, "--like", "pic-poodle", "-n", 2, "-k", 3, "--steps", 2, "--seed", 5)
    assert code == 0
    assert out == mmrec("imagine", *where, "--like", "pic-poodle", "-n", 2, "-k", 3, "--steps", 2, "--seed", 5)[1]
    dials = ("--guidance", "likes=2", "--guidance", "avoid=3", "--interval", "0.2,0.9", "--exploration", 0.5)
    turned = mmrec("imagine", *where, "--like", "pic-poodle", "-n", 2, "--steps", 2, "--seed", 5, *dials)
    assert turned[0] == 0
    assert turned[1] != out
    (tmp_path / "own").mkdir()
    picture = next((tiny_workspace / "sources").rglob("*.png"))
    shutil.copy(picture, tmp_path / "own" / "holiday.png")
    np.save(tmp_path / "me.npy", np.load(tiny_workspace / "vectors" / "vectors.npy")[0])
    code, out, _ = mmrec(
        "imagine", *where, "--pictures", tmp_path / "own", "--vector", tmp_path / "me.npy", "--refuse", "pic-bell"
    )
    assert code == 0
    assert "pic-bell" not in re.findall(r"^ +\d+ +(\S+)", out, re.M)
    edit = ("--edit", "pic-poodle", "--strength", 0.1, "--guidance", "likes=2", "--out", tmp_path / "made")
    code, out, _ = mmrec("imagine", *where, "--like", "pic-bell", "-n", 1, "--steps", 2, *edit)
    assert code == 0
    assert "Poodle" in out
    assert (tmp_path / "made" / "dream-00.png").is_file()
    rank = ("--prompt", "food", "--prompt", "a train", "-n", 1, "--out", tmp_path / "ranked")
    code, out, _ = mmrec("rank", *where, "--like", "pic-poodle", *rank)
    assert code == 0
    assert re.search(r"builtin_image +0\.\d{3} +0\.\d{3}", out), "a row for the decoder, a column for each prompt"
    assert sorted(f.name for f in (tmp_path / "ranked").iterdir()) == ["rank-01.png", "rank-02.png"]
    code, out, _ = mmrec("search", "poodle", *where, "-k", 1)
    assert "pic-poodle" in out
    code, out, _ = mmrec("search", "poodle", *where, "-k", 3, "--by", "codes")
    assert code == 0
    assert len(re.findall(r"^ +[1-3] ", out, re.M)) == 3
    code, out, _ = mmrec("show", "pic-poodle", *where)
    assert code == 0
    assert "Poodle" in out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["recommend", "--user", "nobody"], "the log has no user 'nobody'"),
        (["recommend", "--like", "nothing"], "the catalog has no item 'nothing'"),
        (["recommend", "--like", "pic-poodle", "--mode", "psychic"], "'psychic'"),
        (["recommend", "--like", "pic-poodle", "--allowed", "absent.txt"], "absent.txt"),
        (["imagine", "--guidance", "likes"], "the dials cannot be read"),
        (["imagine", "--guidance", "colour=2"], "the dials cannot be read"),
        (["imagine", "--interval", "0.9,0.1"], "the dials cannot be read"),
        (["imagine", "--pictures", "absent"], "absent is no folder with pictures"),
        (["imagine", "--vector", "absent.npy"], "absent.npy"),
        (["search"], "exactly one of text, image and audio"),
        (["search", "--image", "absent.png"], "absent.png: no such file"),
        (["generate", "sculptures"], "images or music, not 'sculptures'"),
        (["show", "nothing"], "the catalog has no item 'nothing'"),
        (["imagine", "--edit", "nothing"], "the catalog has no item 'nothing'"),
        (["generate", "images", "--guidance", "loud=2"], "the dials cannot be read"),
        (["rank", "--what", "sculptures"], "images or music, not 'sculptures'"),
        (["rank", "--decoder", "nothing"], "no decoder named 'nothing'"),
    ],
)
def test_questions_that_make_no_sense(
    mmrec: Callable[..., Answer], tiny_workspace: Path, command: list[str], told: str
) -> None:
    code, _, err = mmrec(*command, "-w", tiny_workspace)
    assert code == 1
    assert told in err


def test_an_option_that_fails_is_not_kept(mmrec: Callable[..., Answer], mine: Path) -> None:
    before = (mine / "recipe.yaml").read_text(encoding="utf-8")
    for command, told in (
        (["index", "build", "--factory", "Nonsense"], "Nonsense"),
        (["tokenize", "--tokenizer", "nonsense"], "nonsense"),
        (["embed", "--image", "nonsense"], "nonsense"),
    ):
        code, _, err = mmrec(*command, "-w", mine)
        assert code == 1
        assert told in err
    assert (mine / "recipe.yaml").read_text(encoding="utf-8") == before
    assert mmrec("index", "build", "-w", mine)[:2] == (0, "index: fresh, nothing to do\n")


@pytest.mark.parametrize(
    ("section", "command"),
    [("tokenizer", ["tokenize"]), ("retriever", ["train", "retriever"]), ("prior", ["train", "prior"])],
)
def test_an_unknown_option_of_a_model_is_named(
    mmrec: Callable[..., Answer], mine: Path, section: str, command: list[str]
) -> None:
    with (mine / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write(f"{section}: {{colour: red}}\n")
    code, _, err = mmrec(*command, "-w", mine)
    assert code == 1
    assert f"section {section}" in err
    assert "colour" in err


def test_semantic_ids_of_another_catalog_are_refused_and_mended(
    mmrec: Callable[..., Answer], mine: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(mine, other, symlinks=True)
    with (other / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("fusion: {dim: 24}\n")
    assert mmrec("embed", "-w", other)[0] == 0
    assert mmrec("tokenize", "-w", other)[0] == 0
    (mine / "ids").unlink()
    shutil.copytree(other / "ids", mine / "ids")
    code, _, err = mmrec("recommend", "--like", "pic-poodle", "-w", mine)
    assert code == 1
    assert "another catalog" in err
    assert f"mmrec tokenize -w {mine}" in err
    assert mmrec("tokenize", "-w", mine)[0] == 0
    assert mmrec("recommend", "--like", "pic-poodle", "-w", mine)[0] == 0


# -- broken catalogs and logs ------------------------------------------------------------------------------------------


def huge_png(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def media(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "good.jpg")
    Image.fromarray(noise).save(folder.parent / "secret.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:700])
    huge_png(folder / "huge.png")
    soundfile.write(folder / "good.wav", np.sin(np.arange(8000) / 9), 8000)
    (folder / "empty.wav").write_bytes(b"")


ITEMS = """id,title,image,audio
fine,Fine,good.jpg,good.wav
cut,Cut,cut.jpg,
silent,Silent,good.jpg,empty.wav
huge,Huge,huge.png,
climber,Climber,../secret.jpg,
absolute,Absolute,/etc/passwd,
absent,Absent,absent.jpg,
fine,The second fine,good.jpg,
,Nameless,good.jpg,
nothing,,cut.jpg,
plain,Plain,,
"""
EVENTS = """user,item,time,rating
ann,fine,2026-01-05T18:00:00,5
ann,plain,2026-01-06T18:00:00,1
ann,unknown-item,2026-01-06T19:00:00,4
bob,cut,2026-01-06T18:00:00,nan
bob,fine,2026-01-07T18:00:00,4
bob,silent,yesterday,4
,fine,2026-01-07T18:00:00,4
"""


def test_broken_rows_are_set_aside_and_nothing_is_lost(mmrec: Callable[..., Answer], tmp_path: Path) -> None:
    source, where = tmp_path / "shop", tmp_path / "mine"
    media(source)
    (source / "items.csv").write_text(ITEMS, encoding="utf-8")
    (tmp_path / "log.csv").write_text(EVENTS, encoding="utf-8")
    code, out, err = mmrec("ingest", source / "items.csv", "--log", tmp_path / "log.csv", "-w", where)
    assert code == 0, err
    items = pd.read_parquet(where / "catalog" / "items.parquet").set_index("item_id")
    aside = pd.read_parquet(where / "catalog" / "quarantine.parquet")
    assert set(items.index) == {"fine", "cut", "silent", "huge", "climber", "absolute", "absent", "plain"}
    assert items.title["fine"] == "Fine"
    told = {(row.item_id, row.column): row.reason for row in aside.itertuples()}
    for item, column, reason in (
        ("cut", "image", "truncated"),
        ("silent", "audio", "empty"),
        ("huge", "image", "80,000,000 pixels allowed"),
        ("climber", "image", ""),
        ("absolute", "image", ""),
        ("absent", "image", "is not there"),
        ("fine", "id", "already"),
        ("", "id", "empty"),
        ("nothing", "", "no words"),
    ):
        assert reason in told[item, column], (item, column)
    left_out = {("fine", "id"), ("", "id"), ("nothing", "")}
    assert len(items) + len(left_out) == len(list(csv.DictReader(ITEMS.splitlines()))) == 11
    assert items.image.notna().sum() == 2, "fine and silent have the only pictures that can be used"
    assert str(len(aside)) in out

    kept = pd.read_parquet(where / "interactions" / "interactions.parquet")
    rejected = pd.read_parquet(where / "interactions" / "rejected.parquet")
    assert len(kept) + len(rejected) == len(EVENTS.splitlines()) - 1
    assert sorted(zip(kept.user_id, kept.item_id, strict=True)) == [("ann", "fine"), ("ann", "plain"), ("bob", "fine")]
    reasons = " ".join(rejected.astype(str).agg(" ".join, axis=1))
    for word in ("unknown-item", "nan", "yesterday", "user"):
        assert word in reasons, word

    shutil.copy2(source / "good.jpg", source / "cut.jpg")
    assert mmrec("ingest", source / "items.csv", "--log", tmp_path / "log.csv", "-w", where)[0] == 0
    items = pd.read_parquet(where / "catalog" / "items.parquet").set_index("item_id")
    assert items.image["cut"] == "cut.jpg", "a picture that was mended is seen"


@pytest.mark.parametrize(
    ("items", "log", "told"),
    [
        ("name,picture\nx,y\n", None, "has no column 'id'"),
        ("id,title\na,A\n", "who,item\nann,a\n", "column"),
        ("id,title\na,A\n", "user,item\nann,zzz\n", "mend"),
        ("", None, "mend"),
        ("id,title\n", None, "mend"),
        ("id,title\na,A\n", "", "mend"),
    ],
    ids=["no id column", "no user column", "log of another catalog", "empty file", "no rows", "empty log"],
)
def test_what_is_no_catalog_or_no_log_is_refused(
    mmrec: Callable[..., Answer], tmp_path: Path, items: str, log: str | None, told: str
) -> None:
    (tmp_path / "items.csv").write_text(items, encoding="utf-8")
    command = ["ingest", tmp_path / "items.csv", "-w", tmp_path / "mine"]
    if log is not None:
        (tmp_path / "log.csv").write_text(log, encoding="utf-8")
        command += ["--log", tmp_path / "log.csv"]
    code, _, err = mmrec(*command)
    assert code == 1
    assert told in err
    assert str(tmp_path / ("items.csv" if log is None else "log.csv")) in err


# -- a catalog of one's own --------------------------------------------------------------------------------------------

SMALL = """
retriever: {dim: 32, blocks: 1, heads: 2, epochs: 3}
prior: {width: 32, depth: 1, heads: 2, context_width: 32, steps: 30, batch_size: 32}
tokenizer: {name: residual_kmeans, levels: 2, codebook_size: 8}
fusion: {dim: 24}
"""


def test_a_folder_of_pictures_and_a_table_of_likes(
    mmrec: Callable[..., Answer], tiny_workspace: Path, tmp_path: Path
) -> None:
    """The four commands of docs/your-own-catalog.md (the app is started in the tests of the app)."""
    pictures, where = tmp_path / "pictures", tmp_path / "mine"
    pictures.mkdir()
    files = sorted((tiny_workspace / "sources" / "pictures").glob("*.png"))[:30]
    names = [file.stem.removeprefix("pic-") for file in files]
    for file, name in zip(files, names, strict=True):
        shutil.copy2(file, pictures / f"{name}.png")
    draw = random.Random(0)
    with (tmp_path / "likes.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "time", "rating"])
        for person in range(40):
            met = draw.sample(names[:15] if person % 2 else names[15:], 8)
            rows.writerows(
                [f"person {person}", item, 1000 * person + t, draw.randint(2, 5)] for t, item in enumerate(met)
            )
    where.mkdir()
    (where / "recipe.yaml").write_text(SMALL, encoding="utf-8")

    code, out, err = mmrec("ingest", pictures, "--log", tmp_path / "likes.csv", "-w", where)
    assert code == 0, err
    assert "30 items" in out
    assert "320 events of 40 people" in out
    code, out, err = mmrec("run", "-w", where)
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines() if re.match(r"\w[\w ]*: done", line)][:2] == [
        "embed",
        "fuse",
    ]
    assert "item_knn" in out
    code, out, err = mmrec("recommend", "-w", where, "--user", "person 3", "-k", 5)
    assert code == 0, err
    log = pd.read_csv(tmp_path / "likes.csv")
    found = re.findall(r"^ +\d +(\S+)", out, re.M)
    assert len(found) == 5
    assert set(found) <= set(names) - set(log.item[log.user == "person 3"])

    code, out, _ = mmrec("run", "-w", where)
    assert code == 0
    assert "done" not in out
    assert out.count(": fresh") == 10

    shutil.copy2(sorted((tiny_workspace / "sources" / "pictures").glob("*.png"))[40], pictures / "newcomer.png")
    code, out, _ = mmrec("run", "-w", where)
    assert "ingest: done" in out, "a new file in the folder is seen"
    assert len(Workspace(where).require("catalog").files) > 0
    assert "newcomer" in set(pd.read_parquet(where / "catalog" / "items.parquet").item_id)


def test_a_record_of_the_numbers(mmrec: Callable[..., Answer], tiny_workspace: Path, tmp_path: Path) -> None:
    code, out, _ = mmrec("evaluate", "-w", tiny_workspace, "--record", tmp_path)
    assert code == 0
    assert "simulated people" in out
    records = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert {"dataset", "split", "model", "metric", "mean", "std", "seeds", "command", "commit", "machine"} <= set(
        records[0]
    )
    assert "simulated" in records[0]["dataset"]


def test_a_published_model_is_measured_beside_the_recipes_own(
    mmrec: Callable[..., Answer], mine: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(mine / "recipe.yaml")
    recipe.evaluation.baselines["sasrec_bce"] = {"epochs": 1}
    recipe.save(mine / "recipe.yaml")
    asked = ("--also", "sasrec_bce", "--protocol", "refit", "--record", tmp_path)
    code, out, _ = mmrec("evaluate", "-w", mine, *asked)
    assert code == 0
    assert "refit test" in out
    assert "strict test" not in out
    records = {r["model"]: r for r in json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))}
    assert {"retriever", "popularity", "sasrec_bce"} <= set(records)
    assert {record["split"] for record in records.values()} == {"refit-test"}
    assert records["sasrec_bce"]["command"].endswith("--also sasrec_bce --protocol refit")
    assert "--also" not in records["retriever"]["command"]
    code, _, err = mmrec("evaluate", "-w", mine, "--also", "sasrec_bse")
    assert code == 1
    assert "sasrec_bce" in err
