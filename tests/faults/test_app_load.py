"""A small crowd before a real server of the app that is killed while they click: `benchmarks/app_load.py`, reduced."""

import asyncio
import importlib.util
import sys
from pathlib import Path

from kills import Warm

from conftest import Small
from mmrec.feedback import Feedback

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "app_load.py"
spec = importlib.util.spec_from_file_location("benchmark_app_load", SCRIPT)
assert spec is not None
assert spec.loader is not None
load = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = load
spec.loader.exec_module(load)

SESSIONS, CLICKS = 8, 2


def test_a_crowd_and_a_killed_server(small: Small, mine: Path, warm: Warm) -> None:
    """Every answered click is kept, the file is sound, the people are known to the next server and go on."""
    with load.server(mine) as (port, process):
        people = load.visitors(SESSIONS, port, seed=0)
        asyncio.run(load.crowd(people, CLICKS, 0, kill=(process, SESSIONS)))
    before = load.kept(mine)
    load.after_a_kill(people, before)
    assert sum(map(len, before.values())) >= SESSIONS
    with load.server(mine) as (port, _):
        for person in people:
            person.url = f"ws://127.0.0.1:{port}/_stcore/stream"
        asyncio.run(load.crowd(people, CLICKS))
        told = load.settle(mine, people)
    for person in people:
        assert person.errors == []
        assert person.sent == told[person.name], "a click is lost, doubled or out of order"
        assert told[person.name][: len(before.get(person.name, []))] == before.get(person.name, [])
        assert len(person.sent) >= CLICKS + load.HASTE
    assert Feedback(mine / "feedback.sqlite").count() == sum(len(p.sent) for p in people)
