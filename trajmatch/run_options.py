"""Options that all runs have."""

from dataclasses import dataclass

from trajmatch.block import CudaBlocks
from trajmatch.interruption import seconds
from trajmatch.schema import Int, Settings


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """Options of a run: data and seed, device, time limit and output."""

    data: str | None = None
    """Data set, e.g. cifar10:ROOT or imagefolder:PATH."""
    seed: Int = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto: a GPU if one can be used, otherwise the CPU."""
    cuda_blocks: CudaBlocks = "auto"
    """Blocks of a ConvNet that run on trajmatch's own CUDA kernels. library: none; first: the first
    block; tf32 or fp16: also deeper blocks of suitable size, with operands rounded to that
    precision; auto: tf32 or first, whichever is measured to be faster where a CUDA graph runs, else
    tf32 up to 64 channels and first above; always first if PyTorch does not allow TF32."""
    resume: bool = False
    """Continue an interrupted run."""
    max_time: str | None = None
    """Write a checkpoint and stop after this time, e.g. 90m or 1h30m (exit status 75); continue
    with --resume."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Check the fields, including the duration."""
        super().__post_init__()
        if self.max_time is not None:
            seconds(self.max_time)
