"""Memory of a long run: after a thousand iterations what it was after ten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEGA = 2**20

#: In a process of its own, whose memory is that of the run.
PROGRAM = """
import sys
from pathlib import Path
from trajmatch import device, memory
from trajmatch.distill import DistillConfig, distill

memory.keep_freed_memory()

class Watch:
    def update(self, done, **numbers):
        if done in (10, 1000):
            print(done, device.used_bytes("cpu"), device.peak_bytes("cpu"), flush=True)

distill(
    DistillConfig(
        experts=Path(sys.argv[1]), out=Path(sys.argv[2]), ipc=2, iterations=1000, student_steps=3,
        expert_epochs=1, max_start_epoch=3, batch_syn=4, lr_img=1.0, ema=0.99, labels="soft",
        lr_label=0.01, checkpoint_every=50,
    ),
    Watch(),
)
"""


def test_memory_does_not_grow(store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(store), str(tmp_path / "distilled")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (_, used, peak), (_, used_late, peak_late) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert used_late - used <= max(0.02 * used, 8 * MEGA)
    assert peak_late - peak <= max(0.02 * peak, 8 * MEGA)
