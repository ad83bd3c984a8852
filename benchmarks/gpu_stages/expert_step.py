"""Time of an expert's training step: ours beside the same loop in eager PyTorch."""

from __future__ import annotations

from bench.expert import measure_expert
from bench.program import line

from gpu_stages.settings import Record, Settings
from trajmatch.protocol import MTT_DSA


def run(settings: Settings, record: Record) -> None:
    """Time plain SGD steps, without and with augmentation; parameters that differ are a fault."""
    for dsa in ("none", MTT_DSA):
        if settings.quick:
            row = measure_expert(
                4, 8, 2, dsa=dsa, device=settings.device, rounds=1, image_size=8, depth=2
            )
        else:
            row = measure_expert(128, 256, 20, dsa=dsa, device=settings.device)
        record.put(row["case"], row)
        print(line(row), flush=True)
        if not row["agree"]:
            record.fault(f"{row['case']}: {row['differences']}")
