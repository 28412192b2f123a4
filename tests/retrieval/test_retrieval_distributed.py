"""Two processes (gloo) that share every batch learn what one process learns, but for the rounding of sums; and so does
one in half precision, but for coarser rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

TRAIN = """
import sys
from pathlib import Path
import numpy as np
from accelerate import Accelerator
from mmrec.processes import leave
from retrieval.model import RetrieverConfig
from retrieval.semantic_ids import assign_unique, make_tokenizer
from retrieval import training

random = np.random.default_rng(0)
vectors = random.standard_normal((80, 8)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
tokenizer = make_tokenizer("residual_kmeans", levels=2, codebook_size=8)
tokenizer.fit(vectors, seed=0)
ids = assign_unique(tokenizer.encode(vectors), vectors, tokenizer)
histories = [random.integers(80, size=random.integers(2, 14)) for _ in range(45)]
validation = histories[:20], random.integers(80, size=20)
full = {"full": 5_000, "sampled": 50, "sampled, large tables": 50}[sys.argv[3]]
if sys.argv[3] == "sampled, large tables":
    training.LARGE_TABLE = 1
config = RetrieverConfig(
    dim=16, blocks=1, heads=2, dropout=0.0, max_history=10, epochs=3, batch_size=7,
    full_softmax_up_to=full, negatives=30,
)
accelerator = Accelerator()
assert accelerator.num_processes == int(sys.argv[2])
folder = Path(sys.argv[1])
learn_from = {"validation": validation, "checkpoint_dir": folder / "checkpoints"}
found = training.train_retriever(histories, vectors, ids, config, **learn_from)
if accelerator.is_main_process:
    found.save_pretrained(folder)
    np.save(folder / "scores.npy", found.score_all(histories))
leave(0)
"""


def train(folder: Path, processes: int, softmax: str, precision: str = "no") -> np.ndarray:
    """What the model gives every item after training in so many processes, in accelerate's mixed precision."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    env |= {"ACCELERATE_MIXED_PRECISION": precision, **(launched if processes > 1 else {})}
    command = [sys.executable, "-c", TRAIN, str(folder), str(processes), softmax]
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n)} if processes > 1 else {} for n in range(processes)]
    running = [subprocess.Popen(command, env={**env, **rank}) for rank in ranks]
    try:
        assert [process.wait(250) for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
    return np.load(folder / "scores.npy")


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Without dropout, whose masks differ. 45 histories in batches of 7 leave a last batch of odd size."""
    for softmax in ("full", "sampled", "sampled, large tables"):
        one, two = (train(tmp_path / f"{softmax}-{n}", n, softmax) for n in (1, 2))
        # Scores, not weights: the gradient of a key's bias is zero but for rounding, which AdamW blows up.
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4, err_msg=softmax)
        assert one.std() > 0.1, "nothing was learnt"


def test_half_precision_learns_the_same(tmp_path: Path) -> None:
    for softmax in ("full", "sampled"):
        full, half = (train(tmp_path / f"{softmax}-{p}", 1, softmax, p) for p in ("no", "bf16"))
        assert not np.array_equal(full, half), "bfloat16 was not used"
        assert np.corrcoef(full.ravel(), half.ravel())[0, 1] > 0.98
