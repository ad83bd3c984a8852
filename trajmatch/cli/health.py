"""Warnings about the experts, after they were trained and before they are distilled from."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from trajmatch.distill.config import DistillConfig


def print_health(config: DistillConfig) -> None:
    """Print, on the standard error stream, the default window and signs of unhealthy experts.

    The window of start epochs is examined where the experts themselves are healthy.

    Args:
        config: Names the store and the segments that will be drawn from it.

    Raises:
        UserError: The store cannot be used.
    """
    if config.experts is None:
        return
    from trajmatch.experts import Store
    from trajmatch.experts.config import spans
    from trajmatch.experts.health import examine, examine_window

    store = Store.open(config.experts)
    course = store.manifest["snapshots"]
    if config.objective == "train-and-test":  # uses the last epoch at most
        warn(examine(store))
        return
    first, end = config.min_start_epoch, config.window_end(course)
    if config.max_start_epoch is None:
        print(
            f"segments start from epochs {first} to {end - 1}: --max-start-epoch is {end} by "
            f"default for experts with epochs {spans(course)}",
            file=sys.stderr,
        )
    warn(examine(store) or examine_window(store, first, end, config.expert_epochs))


def warn(signs: Iterable[str]) -> None:
    """Print warnings on the standard error stream.

    Args:
        signs: One sentence for each.
    """
    for sign in signs:
        print(f"trajmatch: warning: {sign}", file=sys.stderr)
