"""What a run of ``trajmatch bench`` is: the fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass

from trajmatch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time this machine: trajmatch beside the strongest baselines in PyTorch, same results.

    Raises:
        UserError: A value is out of its range.
    """

    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    seconds: float = 120.0
    """Time to spend, about; torch.compile takes part where it is likely to finish in time."""
    rounds: int = 3
    """Timed rounds of each variant."""
    sizes: tuple[str, ...] = ("32,10,20", "32,50,10", "128,50,6")
    """Outer iterations to time, each width,batch,N."""
    json: bool = False
    """Print the whole record as JSON instead of tables."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Checks the ranges; see the class."""
        if not self.seconds > 0:
            raise UserError(f"--seconds should be positive, but is {self.seconds}")
        if self.rounds < 1:
            raise UserError(f"--rounds should be at least 1, but is {self.rounds}")
        if not self.sizes:
            raise UserError("--sizes should name at least one size, but names none")
