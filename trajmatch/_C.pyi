from typing import Any

def build_info() -> dict[str, Any]:
    """Facts of the build: what the module was built with, and the parts left out.

    Keys: ``torch`` (the release it was compiled against), ``torch_interface`` (the oldest it runs
    with), ``python``, ``compiler``, ``openmp`` (bool), ``cuda`` (release or None),
    ``architectures`` (list of str), ``left_out`` (list of dicts ``what``, ``why``, ``mend``) and
    ``wheel`` (True if it was built for other machines than the one that built it).
    """

def release_workspace() -> None:
    """Gives back what the calling thread's student engine keeps for its next call."""

def tape_elements(
    network: list[int],
    batch_sizes: list[int],
    tape_bytes: int,
    float64: bool,
    cuda: bool,
    trajectories: int = 1,
) -> int: ...
def runs_by_images(network: list[int]) -> bool: ...
def start_profile() -> None: ...
def stop_profile() -> list[tuple[str, float]]: ...
