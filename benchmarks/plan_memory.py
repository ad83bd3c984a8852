"""What `trajmatch distill` says beforehand of its memory, beside what it takes.

    python benchmarks/plan_memory.py

runs one outer iteration of every size of the benchmark's grid up to 100 images in a process of its
own, with and without activations kept, and prints the table. Its status is 1 where a prediction is
off by more than 15 %.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench import facts
from bench.sizes import GRID, Size, parse_size

from trajmatch import files, memory, networks
from trajmatch.cli.arguments import parse
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig
from trajmatch.distill.loop import distill
from trajmatch.distill.memory_plan import Forecast
from trajmatch.experts import ExpertConfig, Store
from trajmatch.experts.train import describe

RESULTS = Path(__file__).parent / "results"

#: The largest difference of prediction and peak, relative to the peak.
TOLERANCE = 0.15
LARGEST_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class PlanMemoryConfig:
    """Compare the predicted peak of memory with the measured one."""

    cells: tuple[str, ...] = ()
    """Sizes, each width,batch,N. Default: the grid up to 100 images."""
    tapes: tuple[int, ...] = (0, 1024)
    """MB for activations (--tape-mb), each."""
    out: Path = RESULTS / "plan_memory_cpu.json"
    """The record."""
    job: str | None = None
    """Used by the program itself: the size and tape that this process measures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    config = parse(
        PlanMemoryConfig, sys.argv[1:] if argv is None else argv, "benchmarks/plan_memory.py"
    )
    if config.job is not None:
        size, tape = config.job.split("/")
        print(json.dumps(measure(parse_size(size), int(tape))))
        return 0
    sizes = [each.key for each in GRID if each.batch <= LARGEST_BATCH]
    rows = []
    for size in config.cells or sizes:
        for tape in config.tapes:
            done = subprocess.run(
                [sys.executable, __file__, f"--job={size}/{tape}"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            rows.append({"size": size, "tape_mb": tape, **json.loads(done.stdout)})
            print(as_line(rows[-1]), flush=True)
    worst = max(abs(row["off"]) for row in rows)
    print(f"{len(rows)} runs, the worst prediction is off by {worst:.1%}")
    record = {"machine": facts.machine("cpu"), "origin": facts.origin(), "rows": rows}
    files.write_json(config.out, {**record, "worst": worst})
    return 0 if worst <= TOLERANCE else 1


def measure(size: Size, tape_mb: int) -> dict[str, float]:
    """One outer iteration on random images and a random walk, as the program does it."""
    memory.keep_freed_memory()
    told: list[Forecast] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = random_walk(folder, size)
        config = DistillConfig(
            experts=store,
            out=folder / "distilled",
            ipc=size.batch // size.num_classes,
            iterations=1,
            student_steps=size.steps,
            expert_epochs=1,
            max_start_epoch=1,
            lr_init=1e-4,
            tape_mb=tape_mb,
        )
        distill(config, tell=told.append)
    (found,) = told
    peak = memory.peak_bytes("cpu")
    return {
        "predicted_bytes": found.peak_bytes,
        "peak_bytes": peak,
        "off": found.peak_bytes / peak - 1,
        "predicted_seconds": found.seconds,
    }


def random_walk(folder: Path, size: Size) -> Path:
    """A store of one expert that makes a random step, on random images."""
    draw = np.random.default_rng(0)
    per_class = max(2, size.batch // size.num_classes)
    labels = np.repeat(np.arange(size.num_classes), per_class)
    images = draw.integers(
        0, 256, (len(labels), size.image_size, size.image_size, 3), dtype=np.uint8
    )
    data = folder / "data.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = ExpertConfig(
        out=folder / "experts",
        data=f"npz:{data}",
        num_experts=1,
        epochs=1,
        width=size.width,
        depth=size.depth,
    )
    dataset = load_dataset(config.data)
    store = Store.create(config.out, describe(config, dataset, dataset))
    model = networks.build(store.manifest["network"])
    start = networks.flat_parameters(model)
    snapshots = torch.stack([start, start + 0.01 * torch.randn_like(start)])
    store.write_expert(0, snapshots, {"train_loss": [], "test_accuracy": 0.0})
    return config.out


def as_line(row: dict[str, float]) -> str:
    """A run for a reader."""
    return (
        f"{row['size']:>11}, tape {row['tape_mb']:4} MB: predicted "
        f"{row['predicted_bytes'] / 1e6:6.0f} MB, took {row['peak_bytes'] / 1e6:6.0f} MB "
        f"({row['off']:+.1%})"
    )


if __name__ == "__main__":
    sys.exit(main())
