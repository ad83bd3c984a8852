"""Options of all runs."""

from __future__ import annotations

from dataclasses import dataclass

from trajmatch.block import CudaBlocks
from trajmatch.interruption import seconds
from trajmatch.schema import Int, Settings


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """Options that decide what a run works on and where, for how long and how loud."""

    data: str | None = None
    """Data set, e.g. cifar10:ROOT or imagefolder:PATH."""
    seed: Int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    cuda_blocks: CudaBlocks = "first"
    """Blocks of a ConvNet that run as one CUDA kernel each: none (library), the first, or with
    operands rounded to tf32 or fp16 the deeper ones too."""
    resume: bool = False
    """Go on with an interrupted run."""
    max_time: str | None = None
    """Stop with a checkpoint after so long, e.g. 90m or 1h30m (exit status 75), for --resume."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Check the types and the duration."""
        super().__post_init__()
        if self.max_time is not None:
            seconds(self.max_time)
