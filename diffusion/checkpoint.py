"""Where a training run stands, on disk: saved now and then, resumed exactly after a kill."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Checkpoint:
    """One safetensors file with the weights, their average and the optimizer, replaced atomically."""

    def __init__(self, folder: Path, fingerprint: str, precision: str) -> None:
        """fingerprint: of all that is learned from and how; precision: of the products, as accelerate names it."""
        self.path, self.fingerprint = Path(folder) / "training.safetensors", f"{fingerprint}-{precision}"

    def save(self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> None:
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in average.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        metadata = {"step": str(step), "fingerprint": self.fingerprint}
        save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, part, metadata)
        os.replace(part, self.path)

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
        """Restore in place and return how many steps are done (0 without a checkpoint)."""
        if not self.path.is_file():
            return 0
        try:
            file = safe_open(self.path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{self.path} is damaged ({error}); delete it, and training begins again") from error
        with file:
            metadata = file.metadata()
            if metadata["fingerprint"] != self.fingerprint:
                raise ValueError(
                    f"{self.path} belongs to a run with other data, options, precision or seed; "
                    "delete it or give another folder"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            if group == "optimizer":
                index, _, rest = rest.partition(".")
                state.setdefault(int(index), {})[rest] = value
            else:
                weights[group][rest] = value
        network.load_state_dict(weights["network"])
        average.update(weights["average"])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(metadata["step"])
