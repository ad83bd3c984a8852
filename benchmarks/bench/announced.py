"""Memory that a distillation announces, and its peak: a job for a process of its own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.sizes import parse_size
from trajmatch.children import Emit
from trajmatch.device import peak_bytes, reset_peak
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.memory_plan import Forecast
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.memory import keep_freed_memory


def measure(job: dict[str, Any], emit: Emit) -> None:
    """Make one outer iteration of ``size`` with ``tape_mb`` on random images."""
    keep_freed_memory()
    size = parse_size(job["size"])
    labels = np.repeat(np.arange(size.num_classes), max(2, size.batch // size.num_classes))
    shape = (len(labels), size.image_size, size.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    told: list[Forecast] = []
    with TemporaryDirectory() as folder:
        data = f"{folder}/data.npz"
        np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
        experts = ExpertConfig(
            out=Path(folder) / "experts",
            data=f"npz:{data}",
            num_experts=1,
            epochs=1,
            batch_size=2,
            width=size.width,
            depth=size.depth,
            workers=1,
            device="cpu",
        )
        train_experts(experts)
        reset_peak("cpu")
        config = DistillConfig(
            experts=experts.out,
            out=Path(folder) / "distilled",
            ipc=size.batch // size.num_classes,
            iterations=1,
            student_steps=size.steps,
            expert_epochs=1,
            max_start_epoch=1,
            lr_init=1e-4,
            tape_mb=job["tape_mb"],
            device="cpu",
        )
        distill(config, tell=told.append)
    (found,) = told
    peak = peak_bytes("cpu")
    emit(
        {
            "predicted_bytes": found.peak_bytes,
            "peak_bytes": peak,
            "off": found.peak_bytes / peak - 1,
            "predicted_seconds": found.seconds,
        }
    )
