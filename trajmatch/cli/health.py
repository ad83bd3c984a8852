"""Warnings about unhealthy experts, after their training and before a distillation."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from trajmatch.distill.config import DistillConfig


def print_health(config: DistillConfig) -> None:
    """Print the default range of start epochs, and warnings about a run's experts, on stderr."""
    if config.experts is None:
        return
    from trajmatch.experts import Store
    from trajmatch.experts.config import spans
    from trajmatch.experts.health import examine, examine_window

    store = Store.open(config.experts)
    course = store.manifest["snapshots"]
    # This objective has no start epochs: it reads at most the last epoch.
    if config.objective == "train-and-test":
        warn(examine(store))
        return
    first, end = config.min_start_epoch, config.window_end(course)
    if config.max_start_epoch is None:
        print(
            f"start epochs are {first} to {end - 1}, because --max-start-epoch defaults to {end} "
            f"for experts with epochs {spans(course)}",
            file=sys.stderr,
        )
    # Examine the start epochs only if the experts themselves are healthy.
    warn(examine(store) or examine_window(store, first, end, config.expert_epochs))


def warn(signs: Iterable[str]) -> None:
    """Print a warning on stderr for each sentence."""
    for sign in signs:
        print(f"trajmatch: warning: {sign}", file=sys.stderr)
