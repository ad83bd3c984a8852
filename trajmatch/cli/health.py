"""What a command says of experts before it distils from them."""

from __future__ import annotations

import sys

from trajmatch.distill.config import DistillConfig


def print_health(config: DistillConfig) -> None:
    """Prints, on the standard error stream, signs that the experts are not worth matching.

    Args:
        config: Names the store and the segments that will be drawn from it.

    Raises:
        UserError: The store cannot be used.
    """
    from trajmatch.experts import Store
    from trajmatch.experts.health import examine, examine_window

    store = Store.open(config.experts)
    window = examine_window(
        store, config.min_start_epoch, config.max_start_epoch, config.expert_epochs
    )
    for sign in (*examine(store), *window):
        print(f"trajmatch: warning: {sign}", file=sys.stderr)
