"""Work that goes on over several calls of a program, within budgets of time.

Work comes in pieces that are finished or not begun: some experts, some outer iterations, a network
of the evaluation. A piece is begun if, judging by the last one of its part, it will end in time;
every call does at least one, so that it gets anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import facts

from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store import exists
from trajmatch.experts.train import automatic_workers

#: Exit status of a call that ended with its slice: come again (EX_TEMPFAIL of sysexits.h).
COME_AGAIN = 75
#: Experts are trained for about so many seconds at a time: each time begins with reading the data.
SECONDS_OF_EXPERTS = 20.0


class SliceOver(Exception):
    """The time of this call is over; the state is on disk, and another call goes on."""


class BudgetOver(Exception):
    """The share of the budget for the current part is spent."""


class Slices:
    """The state of the work, and the time that is spent and left.

    Args:
        path: File of the state; the work goes on from what it holds.
        budget: Seconds for everything, over all calls.
        slice_seconds: Seconds for this call; None for no such limit.
        now: Clock, in seconds.

    Attributes:
        state: What is in the file: ``identity``, ``calls``, ``device``, ``versions`` and
            ``commits``; ``seconds`` by part, ``seconds_each`` of the last piece's items by part;
            and whatever the work adds.
    """

    def __init__(
        self,
        path: Path,
        budget: float = float("inf"),
        slice_seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._budget, self._slice, self._now = path, budget, slice_seconds, now
        self._began = self._piece_began = now()
        self._pieces_here = 0
        self._part = ""
        self.state: dict[str, Any] = files.read_json(path) if path.exists() else {}
        for name in ("seconds", "seconds_each"):
            self.state.setdefault(name, {})

    def begin(self, identity: dict[str, Any], device: str) -> None:
        """Note that there is a call.

        Args:
            identity: What decides the results.
            device: Where they are computed.

        Raises:
            UserError: The state is of other work; what differs is named.
        """
        wanted = json.loads(json.dumps(identity))  # as the state has it, with lists for tuples
        found = self.state.setdefault("identity", wanted)
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise UserError(
                f"{self._path} is of work with another {', '.join(differing)}; write to a new place"
            )
        here, commit = facts.machine(device), facts.origin()["commit"]
        self.state["calls"] = self.state.get("calls", 0) + 1
        self.state["device"] = f"{here['device']}, {here['threads']} threads"
        self.state["versions"] = artifact.current_versions()
        self.state["commits"] = list(dict.fromkeys([*self.state.get("commits", []), commit]))
        self.save()

    @property
    def spent(self) -> float:
        """Seconds that are spent in all calls, including the current piece."""
        earlier: float = sum(self.state["seconds"].values())
        return earlier + self._now() - self._piece_began

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the time in the block on a part of the work."""
        self._part = name
        yield
        self._book()

    def done(self, items: int = 1) -> None:
        """Note that a piece of the current part is finished, and its results on disk.

        Args:
            items: Its number of experts, iterations or networks.
        """
        self.state["seconds_each"][self._part] = self._book() / items
        self._pieces_here += 1
        self.save()

    def has_time(self, items: int = 1, until: float = 1.0) -> bool:
        """True if a piece of so many items ends before a share of the budget is spent.

        Raises:
            SliceOver: It would not end in this call.
        """
        expected = self.state["seconds_each"].get(self._part, 0.0) * items
        if self.spent + expected > until * self._budget:
            return False
        ends = self._now() - self._began + expected
        if self._slice is not None and self._pieces_here > 0 and ends > self._slice:
            raise SliceOver
        return True

    def pieces(
        self,
        part: str,
        done: int,
        wanted: int,
        until: float = 1.0,
        size: int = 1,
        seconds: float = 0,
    ) -> Iterator[range]:
        """Yield the items of one piece after another, while there is time; of all, at least one.

        Args:
            part: Part that they belong to.
            done: Number of items that are there.
            wanted: Number of all items.
            until: Share of the budget after which no piece is begun.
            size: Items of a piece.
            seconds: Time that a piece should take at least, in more items.

        Yields:
            Numbers of items. Their results are on disk before the next are asked for.
        """
        with self.part(part):
            while done < wanted:
                each = self.state["seconds_each"].get(part, 0.0)
                most = max(size, int(seconds / each)) if done and each else size
                piece = range(done, min(wanted, done + most))
                if not self.has_time(len(piece), until) and done:
                    return
                yield piece
                self.done(len(piece))
                done = piece.stop

    def experts(self, part: str, config: ExpertConfig, until: float = 1.0) -> Store:
        """Train experts, as many as there is time for."""
        done = 0
        if exists(config.out):
            store = Store.open(config.out, complete=False)
            done = store.num_experts
            if store.missing():
                train_experts(replace(config, num_experts=done))
        at_once = config.workers or automatic_workers(config.device)
        for piece in self.pieces(
            part, done, config.num_experts, until, at_once, SECONDS_OF_EXPERTS
        ):
            train_experts(replace(config, num_experts=piece.stop))
        return Store.open(config.out)

    def distil(self, part: str, config: DistillConfig, until: float = 1.0) -> Artifact:
        """Distil, for as many outer iterations as there is time for."""
        if config.out.exists():
            return artifact.load(config.out)
        every = config.checkpoint_every
        with self.part(part):
            if self.has_time(every, until) or not config.checkpoint_path.exists():
                with contextlib.suppress(BudgetOver):
                    return distill(config, _Watch(self, every, until))
            # Asking for as many iterations as the checkpoint has makes it the result.
            reached = files.read_metadata(config.checkpoint_path)["progress"]["iteration"]
            return distill(replace(config, iterations=reached))

    def save(self) -> None:
        """Write the state."""
        files.write_json(self._path, self.state)

    def _book(self) -> float:
        """Book the time since the last piece on the current part; return it."""
        now = self._now()
        seconds, self._piece_began = now - self._piece_began, now
        parts = self.state["seconds"]
        parts[self._part] = parts.get(self._part, 0.0) + seconds
        return seconds


class _Watch:
    """The progress of a distillation, which ends at a checkpoint when time is up."""

    def __init__(self, slices: Slices, every: int, until: float) -> None:
        self._slices, self._every, self._until = slices, every, until
        self._begun = False

    def update(self, done: int, **numbers: float) -> None:
        """Book what was done since the last checkpoint, if there is one now."""
        if self._begun and done % self._every == 0:
            self._slices.done(self._every)
            if not self._slices.has_time(self._every, self._until):
                raise BudgetOver
        self._begun = True


def duration(text: str) -> float:
    """Seconds of ``90s``, ``25m`` or ``1.5h``, as the type of an argument."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"should be a duration such as 25m, but is {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
