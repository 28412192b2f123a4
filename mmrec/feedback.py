"""What people told the app: one SQLite table, one row per click, written before the page answers."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmrec.errors import MmrecError


class Feedback:
    """Likes and dislikes given in the app, kept across restarts and ``kill -9``.

    Every method raises `MmrecError`, with the mend, if the disk is full, the folder closed or the file damaged.

    Args:
        path: the SQLite file; made on first use. Write-ahead logging lets many sessions write and read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._connection() as connection:
            for waits in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0):  # here SQLite fails at once where others do the same
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error):
                        raise
                    time.sleep(waits)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS feedback ("
                "time REAL NOT NULL, person TEXT NOT NULL, item TEXT NOT NULL, preference REAL NOT NULL, "
                "origin TEXT NOT NULL)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_person ON feedback (person, time)")

    def add(self, person: str, item: str, preference: float, origin: str, before: Sequence[int] = ()) -> list[int]:
        """Keep one click: ``preference`` 1 for a like, -1 for a dislike, 0 for a like or dislike taken back.

        Args:
            person: who clicked.
            item: an item id, or ``dream:<name>`` for something created.
            origin: where it was shown ("start", "recommend", "dream", "search").
            before: rows of clicks that are here already and were made after this one, oldest first.

        Returns:
            Its row, and the rows that those of ``before`` now have.
        """
        with self._connection() as connection:
            kept = connection.execute(
                "INSERT INTO feedback VALUES (?, ?, ?, ?, ?)", (time.time(), person, item, preference, origin)
            )
            rows = [int(kept.lastrowid or 0)]
            for row in before:
                rows.append(rows[-1] + 1)
                connection.execute("UPDATE feedback SET rowid = ? WHERE rowid = ?", (rows[-1], row))
        return rows

    def of(self, person: str) -> dict[str, float]:
        """Item -> the person's latest preference, oldest opinion first; what was taken back is left out."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT item, preference FROM feedback WHERE person = ? ORDER BY rowid", (person,)
            ).fetchall()
        latest: dict[str, float] = {}
        for item, preference in rows:
            latest.pop(item, None)
            latest[item] = preference
        return {item: preference for item, preference in latest.items() if preference}

    def count(self) -> int:
        """How many clicks were kept."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM feedback").fetchone()[0])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30)
            with connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            told = str(error)
            mend = f"make {self.path.parent} writable, and leave room on its disk"
            if "malformed" in told or "not a database" in told:
                mend = f"move {self.path} away; `sqlite3 {self.path.name} .recover` may save what people said"
            raise MmrecError(f"{self.path} cannot be used: {told}", mend=mend) from error
        finally:
            if connection is not None:
                connection.close()
