"""Health of experts, printed after their training and before a distillation."""

import sys
from collections.abc import Iterable

from trajmatch import networks, ops
from trajmatch.cli.output import aligned
from trajmatch.distill.config import DistillConfig
from trajmatch.experts import Store
from trajmatch.experts.config import spans
from trajmatch.experts.health import examine, examine_window


def print_experts(store: Store) -> None:
    """Print each expert's losses, test result and distances moved; warn about bad experts."""
    error = store.loss == "mse"
    tested = "test error" if error else "test accuracy %"
    rows = [("expert", "first loss", "last loss", tested, "first move", "last move")]
    for expert in range(store.num_experts):
        metrics = store.metrics(expert)
        losses, steps = (
            (f"{values[0]:.3f}", f"{values[-1]:.3f}")
            for values in (metrics["train_loss"], metrics["displacement"])
        )
        tested = f"{metrics['test_error']:.4g}" if error else f"{metrics['test_accuracy']:.1f}"
        rows.append((str(expert), *losses, tested, *steps))
    network = networks.build(store.manifest["network"])
    print(
        f"{store.path}: {store.num_experts} experts, {store.manifest['network']['name']} with "
        f"{networks.num_parameters(network)} parameters, steps run by: {ops.engine_for(network)}; "
        f"trained to {store.reached} (move: distance that the parameters moved in that epoch)\n"
    )
    print(aligned(*rows, rule=True))
    warn(examine(store))


def print_health(config: DistillConfig) -> None:
    """Print the default range of start epochs, and warnings about a run's experts, on stderr."""
    if config.experts is None:
        return
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
