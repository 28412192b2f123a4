"""The report holds the numbers that were measured, opens without a network, and is drawn by a real browser."""

import io
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mmrec.evaluation.harness import claims_against, summarise_seeds, verdict
from mmrec.evaluation.report import About, render_html, terminal_table, write_report

DIAGNOSTICS = {
    "items": 90,
    "sizes": [8, 8],
    "use": [1.0, 0.5],
    "perplexity": [7.1, 3.0],
    "collisions_before": 0.125,
}


def frame(shift=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for name, level in (("ours <b>", 0.31), ("popularity", 0.11), ("item-kNN", 0.21)):
        for metric in ("ndcg@10", "recall@10", "ndcg@20", "popularity@10", "popularity_lift@10", "miscalibration@10"):
            people = (level + shift + rng.normal(0, 0.01, 50)).astype(np.float32)
            value = float(people.mean())
            rows.append((name, metric, value, value - 0.01, value + 0.01, 50, people))
        rows.append((name, "valid", 1.0, 1.0, 1.0, 50, np.ones(50, np.float32)))
        rows.append((name, "users_per_second", 12345.6, np.nan, np.nan, 50, np.empty(0, np.float32)))
    return pd.DataFrame(rows, columns=["recommender", "metric", "value", "low", "high", "n", "people"])


def about(**changes):
    return About("Tunes & emoji", "leave-one-out", ours=("ours <b>",), **changes)


def text_of(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text(styles=True)


def value(table, name, metric):
    return table.set_index(["recommender", "metric"])["value"][name, metric]


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_table_marks_best_and_second(width):
    measured = frame()
    text = text_of(terminal_table(measured, heading="Results"), width)
    for name, style in (("ours <b>", "1"), ("item-kNN", "4")):
        number = f"{value(measured, name, 'ndcg@10'):.4f}".lstrip("0")
        assert re.search(rf"\x1b\[{style}(;[\d;]*)?m *{re.escape(number)}", text), (name, number)
    assert "12,346" in text
    assert "…" not in text
    assert "Results" in text


def test_one_seed_of_several_is_not_passed_off_as_their_mean():
    assert "Numbers of seed 3;" in render_html(frame(), about(seeds=(3, 4)))
    assert "Numbers of seed" not in render_html(frame(), about(seeds=(3,)))


def test_less_can_be_the_best():
    text = text_of(terminal_table(frame()), 140)
    number = f"{value(frame(), 'popularity', 'miscalibration@10'):.3f}".lstrip("0")
    assert re.search(rf"\x1b\[1m *{re.escape(number)}", text)


def test_page_holds_the_numbers_and_needs_no_network(tmp_path):
    measured = frame()
    verdicts = verdict(measured, claims_against("ours <b>", ("popularity", "item-kNN")))
    path = write_report(
        measured, tmp_path, about(simulated=True, items=90, command="mmrec evaluate"), verdicts=verdicts,
        diagnostics=DIAGNOSTICS,
    )  # fmt: skip
    page = path.read_text(encoding="utf-8")
    own = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert f"<b>{value(measured, 'ours <b>', 'ndcg@10'):.4f}</b>" in own
    assert f"<u>{value(measured, 'item-kNN', 'ndcg@10'):.4f}</u>" in own
    assert "2 of 2 claims hold" in own
    assert "ours &lt;b&gt; beats popularity on NDCG@10" in own
    assert "ours <b>" not in own
    assert "Tunes &amp; emoji" in own
    for told in ("50 people asked", "90 items", "seed: 0", "simulated people", "is hidden and asked for", "0.125"):
        assert told in own
    assert "Plotly.newPlot" in page
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", own)
    assert "simulated" not in re.sub(r"<script[^>]*>.*?</script>", "", render_html(measured, about()), flags=re.DOTALL)
    assert not list(tmp_path.glob(".*"))


def test_parquet_keeps_every_person(tmp_path):
    measured = frame()
    write_report(measured, tmp_path, about())
    back = pd.read_parquet(tmp_path / "metrics.parquet")
    pd.testing.assert_frame_equal(back.drop(columns="people"), measured.drop(columns="people"))
    for one, two in zip(back["people"], measured["people"], strict=True):
        np.testing.assert_array_equal(one, two)
    assert [str(v) for v in verdict(back, claims_against("item-kNN", ("popularity",)))] == [
        str(v) for v in verdict(measured, claims_against("item-kNN", ("popularity",)))
    ]


def test_a_summary_over_seeds_renders_too():
    summary = summarise_seeds([frame(), frame(0.02)])
    page = render_html(summary, about(seeds=(0, 1)))
    mean = summary.set_index(["recommender", "metric"])["mean"]["popularity", "ndcg@10"]
    assert f"{mean:.4f}" in page
    assert "standard deviation over seeds" in page
    assert "seeds: 0, 1" in page
    assert f"{mean:.4f}".lstrip("0") in text_of(terminal_table(summary), 120)


def test_a_browser_draws_it(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on the PATH: the page itself is checked by the other tests")
    page = write_report(frame(), tmp_path / "report", about(), diagnostics=DIAGNOSTICS)
    dom = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=True,
    ).stdout  # fmt: skip
    assert dom.count('class="main-svg"') >= 2 * 6  # six figures, drawn
