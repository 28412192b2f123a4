"""Fifty people click at once: is every click kept, how long does the page take, does anybody see an error?

    python benchmarks/app_load.py -w workspaces/demo --record docs/results

The workspace is copied, a real `mmrec app` serves the copy, and each visitor holds a websocket of its own and speaks
Streamlit's protocol as a browser does: it draws the page, presses thumbs one after the other, each when the page has
answered the one before, and at last `HASTE` of them without waiting; it stays until the page tells of all. Counted are
clicks sent, rows in `feedback.sqlite` (the same items, in order), error elements on any page, and the seconds from a
click to the page that knows of it. With `--kill` the server dies by `kill -9` in the middle, and another takes its
place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from mmrec.feedback import Feedback

HASTE = 3
PATIENCE = 120
"""Seconds any page may take before the visitor gives up, which fails the run."""
THUMBS = ("like-start-", "dislike-start-", "like-recommend-", "dislike-recommend-")


@dataclass
class Visitor:
    """One browser: the buttons of the page it sees, what it pressed, what it saw of errors."""

    name: str
    url: str
    dice: random.Random
    sent: list[tuple[str, int]] = field(default_factory=list)
    answered: list[tuple[str, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    buttons: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key of a button -> its id and the fragment of the page that it stands in."""
    words: str = ""
    _drawing: dict[str, tuple[str, str]] = field(default_factory=dict)
    _cache: dict[str, ForwardMsg] = field(default_factory=dict)
    _wire: Any = None

    async def visit(self, clicks: int, haste: int = HASTE) -> None:
        """Open the page, press ``clicks`` thumbs, and ``haste`` more without waiting; the server may die meanwhile."""
        async with connect(self.url, subprotocols=["streamlit"], max_size=None, open_timeout=60) as self._wire:  # type: ignore[list-item]
            await self._ask()
            await self._drawn()
            for _ in range(clicks):
                await self._click()
            for _ in range(haste):
                await self._press()
            with contextlib.suppress(TimeoutError):  # then a click is lost, which the database tells
                async with asyncio.timeout(PATIENCE):
                    while self._told() < len(self.sent):
                        await self._drawn()

    def _told(self) -> int:
        """How many opinions the page says it knows."""
        said = re.search(r"You said <span>(\d+) liked · (\d+) disliked", self.words)
        return int(said[1]) + int(said[2]) if said else 0

    async def _click(self) -> None:
        await self._press()
        began = time.monotonic()
        await self._drawn()
        self.seconds.append(time.monotonic() - began)
        self.answered = list(self.sent)

    async def _press(self) -> None:
        """Press the thumb of an item that this visitor has not told about yet."""
        told = {item for item, _ in self.sent}
        choices = [
            (key, mark, key.removeprefix(mark))
            for key in sorted(self.buttons)
            for mark in THUMBS
            if key.startswith(mark) and key.removeprefix(mark) not in told
        ]
        if len(told) < 3:  # the first likes open the recommendations
            choices = [choice for choice in choices if choice[1].startswith("like-")]
        if not choices:
            raise RuntimeError(f"{self.name} finds nothing to press: {self.errors or self.words[-300:]}")
        key, mark, item = self.dice.choice(choices)
        await self._ask(*self.buttons[key])
        self.sent.append((item, 1 if mark.startswith("like-") else -1))

    async def _ask(self, pressed: str = "", fragment: str = "") -> None:
        message = BackMsg()
        message.rerun_script.query_string = f"person={self.name}"
        message.rerun_script.fragment_id = fragment
        if pressed:
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.trigger_value = pressed, True
        await self._wire.send(message.SerializeToString())

    async def _drawn(self) -> None:
        """Read until the page is whole; a run that was cut short for the next click is not."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message = ForwardMsg.FromString(await self._wire.recv())
                if message.WhichOneof("type") == "ref_hash":
                    message = self._cache[message.ref_hash]
                elif message.hash:
                    self._cache[message.hash] = message
                if self._finished(message):
                    return

    def _finished(self, message: ForwardMsg) -> bool:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._drawing, self.words = {}, ""
        elif kind == "delta":
            element = message.delta.new_element
            what = element.WhichOneof("type")
            if what == "button":
                key = "-".join(element.button.id.split("-")[2:])
                self._drawing[key] = element.button.id, message.delta.fragment_id
            elif what == "html":
                self.words += element.html.body
            elif what == "exception":
                self.errors.append(f"{element.exception.type}: {element.exception.message}")
            elif what == "alert" and element.alert.format == Alert.ERROR:
                self.errors.append(element.alert.body)
        elif kind == "script_finished":
            if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                self.errors.append("the page does not compile")
            if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                self.buttons = self._drawing
            return message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
        return False


@contextlib.contextmanager
def server(workspace: Path) -> Iterator[tuple[int, int]]:
    """`mmrec app` over a workspace; yields its port and its process id. It may be dead at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from mmrec.cli import main; main()",
        "app",
        "-w",
        str(workspace),
        "--port",
        str(port),
    ]
    with (workspace / "server.log").open("a") as log:
        serving = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5)
                    break
                if serving.poll() is not None:
                    raise RuntimeError(f"the app did not start: {(workspace / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield port, serving.pid
        finally:
            serving.kill()
            serving.wait()


def visitors(n: int, port: int, seed: int) -> list[Visitor]:
    """``n`` guests whose names the app takes from the address of the page."""
    return [
        Visitor(f"guest-busy-tester-{i:06x}", f"ws://127.0.0.1:{port}/_stcore/stream", random.Random(f"{seed}/{i}"))
        for i in range(n)
    ]


async def crowd(people: list[Visitor], clicks: int, haste: int = HASTE, *, kill: tuple[int, int] | None = None) -> None:
    """All visit at once; ``kill`` is (process, clicks): the process dies once so many clicks are answered in all."""

    async def watch() -> None:
        assert kill is not None
        while sum(len(p.answered) for p in people) < kill[1]:
            await asyncio.sleep(0.01)
        os.kill(kill[0], signal.SIGKILL)

    async def visit(person: Visitor) -> None:
        try:
            await person.visit(clicks, haste)
        except (ConnectionClosed, OSError):
            if kill is None:
                raise

    async with asyncio.TaskGroup() as group:
        for person in people:
            group.create_task(visit(person))
        if kill is not None:
            group.create_task(watch())


def kept(workspace: Path) -> dict[str, list[tuple[str, int]]]:
    """Per person every click in the database, oldest first, after SQLite has found the file sound."""
    with contextlib.closing(sqlite3.connect(workspace / "feedback.sqlite")) as connection:
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            raise RuntimeError(f"feedback.sqlite is damaged: {sound}")
        rows = connection.execute("SELECT person, item, preference FROM feedback ORDER BY rowid").fetchall()
    told: dict[str, list[tuple[str, int]]] = {}
    for person, item, preference in rows:
        told.setdefault(person, []).append((item, int(preference)))
    return told


def settle(workspace: Path, people: list[Visitor]) -> dict[str, list[tuple[str, int]]]:
    """What is kept once every click sent has come down; clicks made in haste may take a moment longer."""
    until = time.monotonic() + 60
    while True:
        told = kept(workspace)
        if all(p.sent == told.get(p.name, []) for p in people) or time.monotonic() > until:
            return told
        time.sleep(0.5)


def after_a_kill(people: list[Visitor], told: dict[str, list[tuple[str, int]]]) -> None:
    """What the page had answered is kept, and nothing that was not clicked; the one click on its way may be either."""
    for person in people:
        mine = told.get(person.name, [])
        if not len(person.answered) <= len(mine) <= len(person.sent) or mine != person.sent[: len(mine)]:
            raise RuntimeError(f"{person.name} was answered {person.answered}, and {mine} is kept")
        person.sent = list(mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("workspaces/demo"))
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--clicks", type=int, default=5, help="by each, before the hasty ones")
    parser.add_argument("--kill", action="store_true", help="kill -9 the server in the middle, then go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "workspace"
        shutil.copytree(options.workspace, workspace, symlinks=True, ignore=shutil.ignore_patterns("feedback.sqlite*"))
        with server(workspace) as (port, process):
            people = visitors(options.sessions, port, options.seed)
            if options.kill:
                half = options.sessions * options.clicks // 2
                asyncio.run(crowd(people, options.clicks, 0, kill=(process, half)))
            else:
                began = time.monotonic()
                asyncio.run(crowd(people, options.clicks))
                spent = time.monotonic() - began
        if options.kill:
            after_a_kill(people, kept(workspace))
            print(f"killed after {sum(len(p.sent) for p in people)} clicks: every answered one is kept")
            with server(workspace) as (port, _):
                for person in people:
                    person.url = f"ws://127.0.0.1:{port}/_stcore/stream"
                began = time.monotonic()
                asyncio.run(crowd(people, options.clicks))
                spent = time.monotonic() - began
        told = settle(workspace, people)
        assert sum(map(len, told.values())) == Feedback(workspace / "feedback.sqlite").count()
    seconds = np.concatenate([p.seconds for p in people])
    numbers = {
        "clicks": sum(len(p.sent) for p in people),
        "clicks kept": sum(map(len, told.values())),
        "errors shown": sum(len(p.errors) for p in people),
        "seconds to answer, median": float(np.median(seconds)),
        "seconds to answer, 95th percentile": float(np.quantile(seconds, 0.95)),
        "clicks a second": len(seconds) / spent,
    }
    for name, value in numbers.items():
        print(f"{name:36s} {value:,.2f}")
    for person in people:
        if person.sent != told.get(person.name, []) or person.errors:
            sys.exit(f"{person.name}: sent {person.sent}, kept {told.get(person.name)}, saw {person.errors}")
    if options.record:
        record(numbers, options)


def record(numbers: dict[str, float], options: argparse.Namespace) -> None:
    from mmrec import results

    command = f"python benchmarks/app_load.py -w {options.workspace} --sessions {options.sessions}"
    records = [
        results.Record(
            dataset="app under load",
            split=f"{options.sessions} sessions at once",
            model="mmrec app, killed once" if options.kill else "mmrec app",
            metric=metric,
            mean=value,
            seeds=(options.seed,),
            command=f"{command} --clicks {options.clicks}{' --kill' if options.kill else ''} --record docs/results",
            commit=results.commit(),
            machine=results.machine(),
        )
        for metric, value in numbers.items()
    ]
    print(results.write_records("app-load", records, options.record))


if __name__ == "__main__":
    main()
