import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmrec.feedback import Feedback


def test_likes_dislikes_and_what_is_taken_back(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "new" / "feedback.sqlite")
    assert feedback.of("ann") == {}
    feedback.add("ann", "apple", 1, "start")
    feedback.add("ann", "bee", -1, "recommend")
    feedback.add("ann", "cat", 1, "dream")
    feedback.add("bob", "apple", -1, "start")
    assert feedback.of("ann") == {"apple": 1, "bee": -1, "cat": 1}
    feedback.add("ann", "bee", 0, "recommend")
    feedback.add("ann", "apple", -1, "search")
    assert feedback.of("ann") == {"cat": 1, "apple": -1}
    assert list(feedback.of("ann")) == ["cat", "apple"], "the newest opinion is last"
    assert feedback.of("bob") == {"apple": -1}
    assert feedback.count() == 6, "what is taken back is kept on record"


def test_names_are_data_not_sql(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.sqlite")
    name = "Robert'); DROP TABLE feedback;-- \u2603"
    feedback.add(name, 'a "quoted" item', 1, "start")
    assert Feedback(tmp_path / "feedback.sqlite").of(name) == {'a "quoted" item': 1}


def test_the_last_word_counts_even_if_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = Feedback(tmp_path / "feedback.sqlite")
    for time, preference in ((2000.0, 1), (1000.0, -1)):
        monkeypatch.setattr("mmrec.feedback.time.time", lambda time=time: time)
        feedback.add("ann", "apple", preference, "start")
    assert feedback.of("ann") == {"apple": -1}


def test_many_sessions_at_once_lose_nothing(tmp_path: Path) -> None:
    def session(number: int) -> None:
        for click in range(10):
            Feedback(tmp_path / "feedback.sqlite").add(f"person {number}", f"item {click}", 1, "start")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(session, range(16)))
    feedback = Feedback(tmp_path / "feedback.sqlite")
    assert feedback.count() == 160
    assert all(list(feedback.of(f"person {n}")) == [f"item {c}" for c in range(10)] for n in range(16))


def test_clicks_that_are_handed_over_last_first(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.sqlite")
    feedback.add("ann", "early", 1, "start")
    later: list[int] = []
    for item in ("fourth", "third", "second"):
        later = feedback.add("ann", item, 1, "start", later)
        feedback.add("bob", item, 1, "start")
    assert list(feedback.of("ann")) == ["early", "second", "third", "fourth"]
    assert list(feedback.of("bob")) == ["fourth", "third", "second"]
    feedback.add("ann", "late", 1, "start")
    assert list(feedback.of("ann"))[-1] == "late"
    assert feedback.count() == 8


CLICKS = """
import sys
from pathlib import Path
from mmrec.feedback import Feedback
feedback = Feedback(Path(sys.argv[1]))
for click in range(10**6):
    feedback.add("ann", str(click), 1, "start")
    print(click, flush=True)
"""


def test_a_click_that_was_answered_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "feedback.sqlite"
    with subprocess.Popen([sys.executable, "-c", CLICKS, str(file)], stdout=subprocess.PIPE, text=True) as clicking:
        assert clicking.stdout is not None
        for line in clicking.stdout:
            if int(line) >= 25:
                break
        os.kill(clicking.pid, signal.SIGKILL)
        answered = max(25, *(int(line) for line in clicking.stdout if line.endswith("\n")), 0)
    kept = Feedback(file).of("ann")
    assert len(kept) > answered
    assert [int(item) for item in kept] == list(range(len(kept)))
