"""Progress for everything that can outlast two seconds: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmrec.processes import is_main

Tick = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def progress(what: str, unit: str = "items") -> Iterator[Tick]:
    """Show how far ``what`` is, and its rate at the end.

    Yields:
        A function to call with (done, total).
    """
    if not is_main():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = last = time.monotonic()
    seen = 0
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)

            def tick(done: int, total: int) -> None:
                nonlocal seen
                seen = done
                bar.update(task, completed=done, total=total)

            yield tick
    else:

        def tick(done: int, total: int) -> None:
            nonlocal seen, last
            seen = done
            if time.monotonic() - last > 15:
                last = time.monotonic()
                print(f"  {what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

        yield tick
    spent = time.monotonic() - started
    if seen:
        console.print(
            f"  {what}: {seen:,} {unit} in {spent:.1f} s ({seen / max(spent, 1e-9):,.1f} a second)", style="dim"
        )
