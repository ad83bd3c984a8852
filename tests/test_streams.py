"""Branches on streams of their own: in which order they are forked and joined."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from trajmatch import recording
from trajmatch.recording import cuda_graph, side_by_side

CUDA = torch.device("cuda", 0)


class FakeStream:
    """Writes down what waits for what."""

    log: list[tuple[str, ...]]
    count: int

    def __init__(self, device: object = None) -> None:
        FakeStream.count += 1
        self.name, self.device = f"side {FakeStream.count}", device

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append((self.name, "waits for", other.name))


class FakeTensor:
    """Writes down who else uses it."""

    def record_stream(self, stream: FakeStream) -> None:
        FakeStream.log.append(("result", "is used on", stream.name))


@pytest.fixture
def log(monkeypatch) -> list[tuple[str, ...]]:
    """What the streams were told, in order."""
    FakeStream.log, FakeStream.count = [], 0
    main = FakeStream(CUDA)
    main.name = "main"
    FakeStream.count = 0
    now = [main]

    @contextmanager
    def on(stream: FakeStream):
        now.append(stream)
        try:
            yield
        finally:
            now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: now[-1])
    recording._streams.cache_clear()
    yield FakeStream.log
    recording._streams.cache_clear()


def working(number: int):
    def function():
        FakeStream.log.append((f"work {number}", "on", torch.cuda.current_stream().name))
        return (FakeTensor(),)

    return function


def test_branches_are_forked_and_joined(log) -> None:
    results = side_by_side([working(1), working(2)], CUDA)
    assert [len(result) for result in results] == [1, 1]
    assert log == [
        ("side 1", "waits for", "main"),
        ("side 2", "waits for", "main"),
        ("work 1", "on", "side 1"),
        ("work 2", "on", "side 2"),
        ("main", "waits for", "side 1"),
        ("main", "waits for", "side 2"),
        ("result", "is used on", "main"),
        ("result", "is used on", "main"),
    ]


def test_the_streams_are_the_same_every_time(log) -> None:
    for _ in range(3):
        side_by_side([working(1), working(2)], CUDA)
    assert FakeStream.count == 2


def test_a_device_without_an_index_is_the_current_one(log, monkeypatch) -> None:
    for index in (0, 1, 0):
        current = FakeStream(torch.device("cuda", index))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, now=current: now)
        side_by_side([lambda: (), lambda: ()], torch.device("cuda"))
    sides = {name for name, what, _ in log if what == "waits for" and "side" in name}
    assert FakeStream.count == 3 + 2 * 2 and len(sides) == 3 + 2 * 2


def test_a_branch_that_fails_leaves_none_unjoined(log) -> None:
    def fail():
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        side_by_side([working(1), fail, working(3)], CUDA)
    assert log == [
        *[(f"side {number}", "waits for", "main") for number in (1, 2, 3)],
        ("work 1", "on", "side 1"),
        *[("main", "waits for", f"side {number}") for number in (1, 2, 3)],
    ]
    assert torch.cuda.current_stream().name == "main"


@pytest.mark.parametrize(("count", "device"), [(1, CUDA), (3, torch.device("cpu"))])
def test_where_there_is_nothing_to_overlap_the_stream_stays(log, count, device) -> None:
    side_by_side([working(number) for number in range(count)], device)
    assert log == [(f"work {number}", "on", "main") for number in range(count)]


@pytest.mark.cuda
@pytest.mark.parametrize("recorded", [False, True])
def test_branches_on_a_gpu_give_what_one_after_another_gives(recorded) -> None:
    device = torch.device("cuda")
    inputs = [torch.randn(512, 512, device=device) for _ in range(4)]

    def powers(matrix: torch.Tensor):
        def function():
            result = matrix
            for _ in range(20):
                result = torch.tanh(result @ matrix)
            return (result,)

        return function

    def branches():
        return tuple(out for (out,) in side_by_side([powers(each) for each in inputs], device))

    if recorded:
        results, replay = cuda_graph(branches)
        for each in inputs:
            each.normal_()
        replay()
    else:
        results = branches()
    # What is freed in a branch must not be handed out while this stream still reads it.
    noise = [torch.full((512, 512), float("nan"), device=device) for _ in range(8)]
    for each, result in zip(inputs, results, strict=True):
        torch.testing.assert_close(result, *powers(each)(), rtol=0, atol=0)
    assert all(each.isnan().all() for each in noise)


@pytest.mark.cuda
def test_a_recording_that_fails_leaves_the_current_stream() -> None:
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        cuda_graph(lambda: (torch.zeros(1, device="cuda").nonzero(),))
    assert torch.cuda.current_stream() == before
