"""Several processes of one training, started by `accelerate launch`: the main one writes, the others take part.

Only training is shared. Whatever else a stage does, the main process alone does it, under the workspace's lock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from mmrec.workspace import Artifact, Workspace

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: the main one may validate or write while they have nothing to do."""


def count() -> int:
    """How many processes there are; 1 without `accelerate launch` (or torchrun, whose variables these are)."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK", "MASTER_ADDR"} <= os.environ.keys() else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return count() == 1 or os.environ["RANK"] == "0"


def leave(code: int) -> NoReturn:
    """End this process of several at once, all being written.

    Not by `sys.exit`: gloo's threads let go of the last message's tensors whenever they come to it, and one that asks
    for the interpreter's lock while the interpreter shuts down aborts the process (torch 2.15, some 5 times in 100).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def build_together(
    workspace: Workspace,
    stage: str,
    inputs: Mapping[str, str],
    options: Mapping[str, Any],
    train: Callable[[Path], Callable[[Path], None]],
) -> tuple[Artifact, bool]:
    """`Workspace.build` for a model that all processes train.

    train: given the working folder, which holds the checkpoints of a killed run, trains in every process and returns
    what saves the model; only the main process calls that.
    """
    if count() == 1:
        return workspace.build(stage, inputs, options, lambda folder: train(folder)(folder))
    from accelerate import Accelerator, InitProcessGroupKwargs

    Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])  # whoever trains finds it set up

    def write(folder: Path) -> None:
        _from_main(str(folder))
        train(folder)(folder)

    if is_main():
        built = workspace.build(stage, inputs, options, write)
        _from_main(None)
        return built
    while (folder := _from_main()) is not None:
        train(Path(folder))
    return workspace.require(stage), True


def _from_main(told: str | None = None) -> str | None:
    """What the main process tells all of them; the others wait for it."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([told])[0]
