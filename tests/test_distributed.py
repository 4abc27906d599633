"""Two processes with half a batch each learn what one process learns with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets", reason="needs chiasm[train]")
SCRIPT = Path(__file__).parent / "train_across_processes.py"


def _run(command: list[str], out: Path, processes: int) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), str(processes)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    one = _run([sys.executable], tmp_path / "one.json", 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = _run(launcher, tmp_path / "two.json", 2)
    assert len(one["losses"]) == 32
    assert one["losses"][-1] < 0.7 * one["losses"][0]
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(one["weights"], two["weights"], rtol=1e-3, atol=1e-4)
