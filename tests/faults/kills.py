"""Runs `mmrec` commands in forks of one warm process, and kills them at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM = [
    "faiss", "librosa", "pandas", "plotly.graph_objects", "pyarrow.compute", "pyarrow.csv", "pyarrow.dataset",
    "pyarrow.parquet", "sklearn.decomposition", "sklearn.manifold", "soundfile", "PIL.Image", "PIL.PngImagePlugin",
    "transformers.models.bert.modeling_bert", "efficientnet_lite_pytorch",
    "encoders.text", "encoders.image", "encoders.audio", "encoders.bridge", "encoders.fusion",
    "retrieval.training", "diffusion.training", "diffusion.decoders.builtin_image", "diffusion.decoders.builtin_music",
    "mmrec.cli", "mmrec.stages", "mmrec.recommender", "mmrec.generation", "mmrec.evaluation.stage",
]  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TOUCHES = {"open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir"}


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after the `touch`-th time that a file with `needle` in its path is about to be written."""

    needle: str
    touch: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: what it returned or by which signal, what it printed, how often it touched files."""

    code: int
    said: str
    touches: int

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Warm:
    """A process that has the heavy imports behind it; every command runs in a fork of it, as a new `mmrec` would.

    Imports are most of what a command costs, and no file of a workspace is written during them: what is killed here is
    what would be killed there.
    """

    def __init__(self, scratch: Path) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.scratch = scratch
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(WARM)
        self.count = 0

    def run(self, command: list[str], moment: Moment | None = None, *, before: Any = None) -> Ended:
        """Run `mmrec COMMAND`, and kill it at `moment`; `before()` is called in the fork first."""
        process = self.start(command, moment, before=before)
        report = self.scratch / f"{self.count:04d}"
        process.join(240)
        assert process.exitcode is not None, f"{command} hangs"
        touches = report.with_suffix(".touches")
        return Ended(
            process.exitcode,
            report.read_text(encoding="utf-8", errors="replace"),
            int(touches.read_text()) if touches.is_file() else 0,
        )

    def start(self, command: list[str], moment: Moment | None = None, *, before: Any = None) -> Any:
        """The process that runs it."""
        self.count += 1
        report = self.scratch / f"{self.count:04d}"
        process = self.context.Process(target=_child, args=(command, moment, report, before))
        process.start()
        return process

    def kill(self, command: list[str], needle: str, nth: int = 1, delay: float = 0.0) -> None:
        """Kill it at a moment that it must come to."""
        ended = self.run(command, Moment(needle, nth, delay))
        assert ended.killed, f"{command} did not come to touch {nth} of {needle!r}: {ended.said}"

    def finish(self, command: list[str], needle: str = "") -> Ended:
        """Run it to its end; touches of `needle` are counted."""
        ended = self.run(command, Moment(needle, 0) if needle else None)
        assert ended.code == 0, ended.said
        return ended


def random_moments(seed: str, needle: str, touches: int, n: int) -> list[Moment]:
    """`n` moments over the whole of a run; half of them a little after a touch, in the middle of writing."""
    dice = random.Random(seed)
    return [Moment(needle, dice.randint(1, touches), dice.choice([0.0, dice.uniform(0, 0.2)])) for _ in range(n)]


# What a command's process may do first. It imports this module by name, and so nothing that is called conftest.


def limited(size: int) -> None:
    """No file may grow beyond `size` bytes, as with a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def stop_at(needle: str, flag: Path) -> None:
    """Stand still at the first touch of a file with `needle` in its path, having left `flag`."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and needle in str(arguments[0]) and not flag.exists():
            flag.write_text(str(os.getpid()))
            time.sleep(600)

    sys.addaudithook(watch)


def backwards() -> None:
    """Every look at the clock finds it an hour earlier than the one before."""
    began, looks = time.time(), 0

    def earlier() -> float:
        nonlocal looks
        looks += 1
        return began - 3600 * looks

    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)


def _child(command: list[str], moment: Moment | None, report: Path, before: Any) -> None:
    out = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        assert moment is not None
        if event not in TOUCHES or (event == "open" and not (arguments[2] or 0) & WRITING):
            return
        if not any(moment.needle in str(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)):
            return
        count += 1
        if count == moment.touch and moment.delay:
            threading.Timer(moment.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif count == moment.touch:
            os.kill(os.getpid(), signal.SIGKILL)

    import torch

    from mmrec.cli import main

    torch.set_num_threads(1)
    if before is not None:
        before()
    if moment is not None:
        sys.addaudithook(watch)
    sys.argv = ["mmrec", *command]
    try:
        main()
    finally:
        touched = count  # writing the report is no touch of the command's
        # Whole or not at all: a delayed kill may come in the middle of this, too.
        report.with_suffix(".counted").write_text(str(touched))
        report.with_suffix(".counted").rename(report.with_suffix(".touches"))
        sys.stdout.flush()
        sys.stderr.flush()
