"""What the operators' tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True, scope="module")
def _two_threads() -> Iterator[None]:
    """Operators divide their work, also where each core has a process that tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def randn(device: torch.device) -> Callable[..., Tensor]:
    """Normal random numbers on the device under test, float64 unless said otherwise."""

    def draw(*sizes: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
        return torch.randn(sizes, dtype=dtype).to(device).requires_grad_(grad)

    return draw


@pytest.fixture
def assert_close_as_vectors() -> Callable[[Sequence[Tensor], Sequence[Tensor], float], None]:
    """Checks every result for its error as a vector, ``|ours - exact| <= bound * |exact|``.

    A gradient that is zero in exact arithmetic is rounding on both sides: below 1e-12 of the
    largest result, absolute smallness is enough.
    """

    def check(ours: Sequence[Tensor], exact: Sequence[Tensor], bound: float) -> None:
        assert len(ours) == len(exact)
        largest = max(wanted.detach().double().norm().item() for wanted in exact)
        for index, (got, wanted) in enumerate(zip(ours, exact, strict=True)):
            assert got.shape == wanted.shape
            scale = wanted.detach().double().norm().item()
            error = (got.detach().double() - wanted.detach().double()).norm().item()
            assert error <= bound * scale + 1e-12 * largest, (
                f"result {index} is off by {error:.1e} of {scale:.1e}, more than {bound:.0e}"
            )

    return check
