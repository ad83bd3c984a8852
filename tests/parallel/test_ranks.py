"""What processes say to each other, with threads in place of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trajmatch.cli import main as program
from trajmatch.cli.main import main
from trajmatch.errors import UserError
from trajmatch.interruption import Interrupted
from trajmatch.parallel import ALONE, Ranks, is_launched, joined, launch, local_device
from trajmatch.parallel.ranks import DistributedRanks, LostRank, answering, first_that_differs


def together(function: Callable[[Ranks], Any], size: int = 3) -> list[Any]:
    """What a function gives, or raises, in threads that share a store."""
    store = dist.HashStore()

    def of_rank(rank: int) -> Any:
        ranks = DistributedRanks(store, rank, size, torch.device("cpu"))
        try:
            return function(ranks)
        except Exception as error:
            ranks.fail()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(of_rank, range(size)))


def test_one_process_works_alone() -> None:
    ranks = Ranks()
    tensor = torch.tensor([1.5])
    ranks.sum_(tensor)
    ranks.broadcast_(tensor)
    ranks.barrier()
    count = ranks.counter()
    assert (ranks.is_rank_0, ranks.size, tensor.item()) == (True, 1, 1.5)
    assert ranks.shard("abc") == ["a", "b", "c"]
    assert ranks.gather(tensor)[0] is tensor
    assert ranks.on_rank_0(lambda: {"x": 1}) == {"x": 1}
    assert (count(), count(), ranks.counter()()) == (1, 2, 1)


def test_every_item_is_shared_once() -> None:
    shares = together(lambda ranks: ranks.shard(range(8)))
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_what_the_writer_finds_is_the_same_for_all() -> None:
    called = []

    def function() -> dict[str, Any]:
        called.append(threading.get_ident())
        return {"mean": 0.1 + 0.2, "none": None, "nan": float("nan")}

    for found in together(lambda ranks: (ranks.on_rank_0(function), ranks.on_rank_0(list))):
        assert found[0]["mean"] == 0.1 + 0.2
        assert found[0]["nan"] != found[0]["nan"]
        assert found[1] == []
    assert len(called) == 1


def test_a_mistake_that_the_writer_finds_is_one_of_all() -> None:
    def refuse() -> None:
        raise UserError("there is no such file")

    for error in together(lambda ranks: ranks.on_rank_0(refuse)):
        assert isinstance(error, UserError) and str(error) == "there is no such file"


def test_nobody_waits_for_a_process_that_has_failed() -> None:
    def function(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise KeyError("a mistake in the program")
        ranks.barrier()

    first, second, third = together(function)
    assert isinstance(second, KeyError)
    assert isinstance(first, LostRank) and isinstance(third, LostRank)


def test_nobody_goes_on_before_all_are_there() -> None:
    arrived = []

    def function(ranks: Ranks) -> int:
        count = ranks.counter()
        for _ in range(5):
            count()
        arrived.append(ranks.rank)
        ranks.barrier()
        return len(arrived), count()

    found = together(function)
    assert [number for number, _ in found] == [3, 3, 3]
    assert sorted(total for _, total in found) == [16, 17, 18]


def test_one_process_tells_of_a_failure() -> None:
    assert sorted(together(lambda ranks: ranks.fail())) == [False, False, True]
    assert ALONE.fail()


def test_errors_of_torch_say_what_to_do() -> None:
    gloo = "[/src/pair.cc:537] Read error [10.0.0.1]:51355: Connection reset by peer. Advice."
    with pytest.raises(LostRank) as error, answering():
        raise RuntimeError(gloo)
    assert "Read error [10.0.0.1]:51355: Connection reset by peer. All files" in str(error.value)
    assert "continue with --resume" in str(error.value)


class Others(Ranks):
    """A process whose fellows have other tensors."""

    def __init__(self, change: float) -> None:
        self.size, self._change = 2, change

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor, tensor + self._change]


def test_another_checksum_is_found() -> None:
    assert first_that_differs(Others(0), "00ff10") is None
    assert first_that_differs(Others(1), "00ff10") == 1
    assert first_that_differs(ALONE, "00ff10") is None


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that torchrun gives the second of three processes."""
    environment = {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "3",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_torchrun_is_recognised(launched) -> None:
    assert is_launched()
    launched.setenv("WORLD_SIZE", "1")
    assert not is_launched()
    with joined("cpu") as ranks:
        assert ranks is ALONE


def test_without_torchrun_a_process_joins_nobody() -> None:
    assert not is_launched()
    assert local_device("cuda:3") == "cuda:3"
    with joined("cpu") as ranks:
        assert ranks is ALONE


def test_every_process_takes_a_gpu_of_its_own(launched) -> None:
    launched.setattr(launch.torch.cuda, "device_count", lambda: 2)
    assert local_device("cpu") == "cpu"
    assert local_device("cuda") == "cuda:1"
    told = "--device cuda:1 would put all processes of torchrun on one GPU"
    with pytest.raises(UserError, match=told):
        local_device("cuda:1")
    launched.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="3 processes on a machine that has 2 GPUs"):
        local_device("cuda")


def test_a_command_that_cannot_be_divided_is_refused(launched, capsys) -> None:
    launched.setenv("RANK", "0")
    assert main(["recipes"]) == 2
    message = capsys.readouterr().err
    assert "3 processes, but trajmatch recipes runs as one" in message
    assert "only expert and distill can use several processes" in message


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [program._GRACE])])
def test_before_they_join_the_first_process_tells_at_once(launched, capsys, rank, waits) -> None:
    slept: list[float] = []
    launched.setattr(program.time, "sleep", slept.append)
    launched.setenv("RANK", rank)
    assert main(["distil"]) == 2
    assert slept == waits  # in which torchrun ends the others
    assert "there is no command 'distil'" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "messages"), [("0", 1), ("1", 0)])
def test_before_they_join_only_the_first_process_says_that_it_was_stopped(
    launched, capsys, rank, messages
) -> None:
    def stop(arguments: list[str]) -> int:
        raise Interrupted("SIGTERM", 143)

    launched.setattr(program, "_dispatch", stop)
    launched.setenv("RANK", rank)
    assert main(["distill"]) == 143
    assert capsys.readouterr().err.count("stopped by SIGTERM") == messages
