"""The door for claims: what goes in comes out, what is not measured does not."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from mmrec import results
from mmrec.results import Record, read_records, records_of, render, write_records

ROOT = Path(__file__).parents[2]


def record(**changes):
    base = {
        "dataset": "ml-100k",
        "split": "leave-one-out",
        "model": "ours",
        "metric": "ndcg@10",
        "mean": 0.0812,
        "std": 0.0011,
        "seeds": [0, 1, 2],
        "command": "mmrec run recipes/ml100k.yaml",
        "commit": "abc1234",
        "machine": "Some CPU, 2 cores",
    }
    return Record(**base | changes)


def test_the_page_in_docs_is_the_rendering_of_the_records(tmp_path):
    page = ROOT / "docs/results.md"
    assert page.read_text(encoding="utf-8") == render(ROOT / "docs/results", tmp_path / "results.md"), (
        "docs/results.md is not what the records say: run python -m mmrec.results"
    )


def test_round_trip_and_merge(tmp_path):
    first, other = record(), record(metric="recall@10", mean=0.15)
    path = write_records("ml100k", [first, other], tmp_path)
    assert read_records(tmp_path) == [first, other]
    better, baseline = record(mean=0.09, std=None, seeds=[7]), record(model="popularity", mean=0.05)
    write_records("ml100k", [better, baseline], tmp_path)
    assert read_records(tmp_path) == [better, other, baseline]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert json.loads(path.read_text())[0]["mean"] == 0.09


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_records("a", [record()], tmp_path)
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_records("a", [record(mean=1.0)], tmp_path)
    assert path.read_bytes() == before


def test_one_number_is_claimed_once(tmp_path):
    write_records("a", [record()], tmp_path)
    write_records("b", [record(mean=0.9)], tmp_path)
    with pytest.raises(ValueError, match=r"a\.json and .*b\.json both hold ml-100k / leave-one-out / ours / ndcg@10"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": float("nan")},
        {"mean": float("inf")},
        {"std": -0.1},
        {"seeds": []},
        {"command": ""},
        {"command": "mmrec run /home/someone/recipe.yaml"},
        {"command": "mmrec run --out=~/x"},
        {"guess": 1},
    ],
)
def test_what_no_record_may_say(changes):
    with pytest.raises(ValidationError):
        record(**changes)


def test_relative_paths_and_division_signs_are_fine():
    assert record(command="mmrec run recipes/a.yaml --out build/x && cat a/b", model="a / b", machine="x86/64").seeds


def test_file_names(tmp_path):
    for name in ("goals", "../x", "A B", ""):
        with pytest.raises(ValueError, match="cannot name"):
            write_records(name, [], tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text('[{"dataset": "x"}]')
    with pytest.raises(ValueError, match=r"bad\.json is no list of records: 0\.split: Field required"):
        read_records(tmp_path)


def test_page(tmp_path):
    write_records(
        "ml100k",
        [
            record(),
            record(model="popularity", mean=0.05, std=None, seeds=[0]),
            record(metric="miscalibration@10", mean=0.4, std=None),
            record(metric="miscalibration@10", mean=0.3, std=None, model="popularity"),
            record(metric="users per hour", mean=123456.0, std=None),
        ],
        tmp_path / "r",
    )
    write_records("demo", [record(dataset="demo", mean=0.2)], tmp_path / "r")
    goals = [
        {"metric": "ndcg@10", "goal": 0.08, "source": "the issue"},
        {"metric": "ndcg@10", "goal": 0.08, "source": "the issue", "model": "popularity"},
        {"metric": "miscalibration@10", "goal": 0.25, "source": "us", "better": "lower"},
        {"metric": "recall@50", "goal": 0.5, "source": "a paper"},
    ]
    goals = [{"dataset": "ml-100k", "split": "leave-one-out"} | goal for goal in goals]
    (tmp_path / "r/goals.json").write_text(json.dumps(goals))
    page = render(tmp_path / "r", tmp_path / "results.md")
    assert page == (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "## ml-100k, leave-one-out" in page
    assert "## demo, leave-one-out" in page
    assert "| model | NDCG@10 ↑ | Miscalibration@10 ↓ | users per hour |" in page
    assert "| ours | **0.0812 ± 0.0011** | 0.4000 | 123,456.0 |" in page
    assert "| popularity | 0.0500 | **0.3000** | – |" in page
    assert "- ours: 3 seeds (0, 1, 2), `mmrec run recipes/ml100k.yaml`, commit abc1234, Some CPU, 2 cores" in page
    assert "- popularity: 1 seed (0), " in page
    assert "| 0.08 | 0.0812 ± 0.0011 (ours) | **met** | the issue |" in page
    assert "| 0.08 | 0.0500 (popularity) | missed by 0.03 | the issue |" in page
    assert "| 0.25 | 0.3000 (popularity) | missed by 0.05 | us |" in page
    assert "| 0.5 | – | not measured yet | a paper |" in page
    assert "- **NDCG**: " in page


def test_records_of_a_summary():
    summary = pd.DataFrame(
        {
            "recommender": ["ours", "ours", "popularity", "ours"],
            "metric": ["ndcg@10", "mrr@10", "ndcg@10", "diversity@10"],
            "mean": [0.2, 0.3, 0.1, float("nan")],
            "std": [0.01, 0.01, float("nan"), float("nan")],
        }
    )
    made = records_of(summary, dataset="demo", split="by-time", seeds=(0, 1), command="make demo")
    assert [(r.model, r.metric, r.mean, r.std, r.seeds) for r in made] == [
        ("ours", "ndcg@10", 0.2, 0.01, (0, 1)),
        ("popularity", "ndcg@10", 0.1, None, (0, 1)),
    ]
    assert {r.machine for r in made} == {results.machine()}


def test_machine_is_a_class_not_a_name():
    import platform

    assert results.machine().endswith(("core", "cores"))
    assert platform.node() not in results.machine()


def test_commit_knows_dirt_but_not_results(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    assert results.commit(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = results.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "docs/results/a.json").write_text("[]")
    (tmp_path / "docs/results.md").write_text("x")
    assert results.commit(tmp_path) == clean
    assert results.commit(tmp_path / "docs") == clean
    (tmp_path / "new.py").write_text("2")
    assert results.commit(tmp_path) == clean + "+dirty"


def test_command_line_renders(tmp_path):
    write_records("a", [record()], tmp_path / "docs/results")
    subprocess.run([sys.executable, "-m", "mmrec.results"], cwd=tmp_path, check=True, capture_output=True)
    assert "0.0812" in (tmp_path / "docs/results.md").read_text(encoding="utf-8")
