"""Engines: where the tasks of a batch job run, in this process or on a Ray cluster.

A batch job is a list of independent tasks (JSON-able) and a worker, which makes one task into files (name -> bytes).
The engine gives the files back in the order of the tasks and the job writes them. So whatever the engine, there is one
writer, which holds the workspace's lock, and what lies on disk in the end is the same to the byte.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from mmrec.errors import MmrecError

Task = dict[str, Any]
Files = dict[str, bytes]
Worker = Callable[[Task], Files]
"""Loads what it needs at its first task; until then it is small and can be sent to another machine."""
MAX_BLOCKS = 10_000
"""Ray hands out one block at a time, which is what a lost machine costs; more tasks than this share blocks."""


class Engine(Protocol):
    """Runs a worker over tasks."""

    def run(self, worker: Worker, tasks: Sequence[Task]) -> Iterator[Files]:
        """The files of every task, in the order of the tasks."""
        ...


class LocalEngine:
    """One task after the other, in this process."""

    def run(self, worker: Worker, tasks: Sequence[Task]) -> Iterator[Files]:
        return map(worker, tasks)


class RayEngine:
    """A Ray Data pipeline over a pool of actors: one to a GPU, or as many as there are cores for where there are none.

    Each actor keeps its worker, so a model is loaded once per actor. A block that was lost with its process or machine
    is run again elsewhere; an error of the worker itself is raised here. Every machine needs mmrec, and sees the media
    and the workspace under the same paths. An actor has as many threads as this process (``OMP_NUM_THREADS``), for the
    last bits of a sum depend on how many threads share it.

    Args:
        address: of a running cluster; None means the one of ``RAY_ADDRESS``, or a new one on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def run(self, worker: Worker, tasks: Sequence[Task]) -> Iterator[Files]:
        """The files of every task, in the order of the tasks.

        Raises:
            MmrecError: if ray is not installed, or the cluster cannot be reached.
        """
        if not tasks:
            return
        import torch

        ray = self._connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        threads = min(torch.get_num_threads(), max(int(node.get("CPU", 0)) for node in nodes))
        actors = gpus or sum(int(node.get("CPU", 0)) // threads for node in nodes)
        data = ray.data.from_items(
            [{"task": json.dumps(task)} for task in tasks], override_num_blocks=min(len(tasks), MAX_BLOCKS)
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data.context.enable_progress_bars = False
        data.context.raise_original_map_exception = True
        data.context.execution_options.preserve_order = True
        done = data.map_batches(
            _Actor,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(tasks))),
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
        )
        try:
            for row in done.iter_rows():
                yield dict(zip(row["names"], row["contents"], strict=True))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the worker's own
        except ray.exceptions.RayError as error:
            raise MmrecError(
                f"the Ray cluster cannot run the job ({error})",
                mend="install the same mmrec on every machine, and look at `ray status`",
            ) from error

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MmrecError("the ray engine needs Ray", mend='pip install "ray[data]"') from error
        if not ray.is_initialized():
            try:
                ray.init(
                    address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise MmrecError(
                    f"there is no Ray cluster at {self.address or os.environ.get('RAY_ADDRESS')} ({error})",
                    mend="ray start --head, or leave --address out",
                ) from error
        return ray


class _Actor:
    """What runs on the cluster: Ray Data's batches of one row in, one row out."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[list[Any]]]:
        files = self.worker(json.loads(batch["task"][0]))
        return {"names": [list(files)], "contents": [list(files.values())]}


def make_engine(name: Literal["local", "ray"] | str, address: str | None = None) -> Engine:
    """The engine called ``name``.

    Raises:
        MmrecError: if there is no such engine.
    """
    if name == "local":
        return LocalEngine()
    if name == "ray":
        return RayEngine(address)
    raise MmrecError(f"there is no engine {name!r}", mend="--engine local, or --engine ray")


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes `numpy.save` writes."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
