"""Two processes (gloo) that share every batch learn what one process learns, but for the rounding of sums."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion.training import _rows

TRAIN = """
import sys
from pathlib import Path
import numpy as np
from accelerate import Accelerator
from mmrec.processes import leave
from diffusion.prior import PriorConfig
from diffusion.training import train_prior

random = np.random.default_rng(0)
vectors = random.standard_normal((200, 16)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
histories = [random.integers(200, size=12) for _ in range(40)]
preferences = [random.choice([1.0, -1.0], 12).astype(np.float32) for _ in histories]
config = PriorConfig(width=32, depth=2, heads=2, context_width=16, batch_size=15, steps=24, checkpoint_every=6)
state = Accelerator()
assert state.num_processes == int(sys.argv[2])
prior = train_prior(histories, preferences, vectors, config, checkpoint_dir=Path(sys.argv[1]) / "checkpoints")
if state.is_main_process:
    prior.save_pretrained(Path(sys.argv[1]))
leave(0)
"""


def train(folder: Path, processes: int) -> dict[str, np.ndarray]:
    """The weights after training in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **(launched if processes > 1 else {})}
    command = [sys.executable, "-c", TRAIN, str(folder), str(processes)]
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n)} if processes > 1 else {} for n in range(processes)]
    running = [subprocess.Popen(command, env={**env, **rank}) for rank in ranks]
    try:
        assert [process.wait(200) for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
    return load_file(folder / "model.safetensors")


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", 1), train(tmp_path / "two", 2)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5, err_msg=name)
    (tmp_path / "two" / "model.safetensors").unlink()
    again = train(tmp_path / "two", 1)  # it goes on from what the two have left: all is done
    for name in one:
        np.testing.assert_array_equal(again[name], two[name], err_msg=name)


def test_every_row_of_a_batch_goes_to_one_process() -> None:
    for batch, processes in ((15, 2), (128, 3), (4, 4)):
        parts = [_rows(batch, process, processes) for process in range(processes)]
        assert [row for part in parts for row in range(batch)[part]] == list(range(batch))
        assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1
    with pytest.raises(ValueError, match="batch_size 2 cannot be shared by 3 processes"):
        _rows(2, 0, 3)
