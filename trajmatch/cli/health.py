"""Warnings about the experts, after they were trained and before they are distilled from."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from trajmatch.distill.config import DistillConfig


def print_health(config: DistillConfig) -> None:
    """Print, on the standard error stream, signs that the experts are not worth matching.

    The window of start epochs is looked at where the experts themselves are healthy.

    Args:
        config: Names the store and the segments that will be drawn from it.

    Raises:
        UserError: The store cannot be used.
    """
    from trajmatch.experts import Store
    from trajmatch.experts.health import examine, examine_window

    store = Store.open(config.experts)
    warn(
        examine(store)
        or examine_window(
            store, config.min_start_epoch, config.max_start_epoch, config.expert_epochs
        )
    )


def warn(signs: Iterable[str]) -> None:
    """Print warnings on the standard error stream.

    Args:
        signs: One sentence for each.
    """
    for sign in signs:
        print(f"trajmatch: warning: {sign}", file=sys.stderr)
