"""`trajmatch eval`: tests a distilled set beside random real images."""

from __future__ import annotations

import json
from typing import Any

from trajmatch.evaluate.config import EvalConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(EvalConfig, argv, "trajmatch eval", "file")

    from trajmatch.cli.progress import Progress
    from trajmatch.evaluate import evaluate_artifact

    networks = 2 * config.seeds if config.random_baseline else config.seeds
    epochs = networks * (config.epochs + 1)
    with Progress(epochs, "evaluation epochs", config.quiet) as progress:
        result = evaluate_artifact(config, progress)
    if config.json:
        print(json.dumps(result, indent=2, sort_keys=True))
    else:
        _print_table(result)
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    name, per_class = result["dataset"]["name"], result["images_per_class"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{name}, images per class: {per_class}")
    table.add_column("trained on")
    table.add_column("test accuracy %", justify="right")
    table.add_column("each network", justify="right")
    for key, label in (("random_real", "random real images"), ("distilled", "distilled images")):
        score = result[key]
        if score is not None:
            each = " ".join(f"{accuracy:.1f}" for accuracy in score["accuracies"])
            table.add_row(label, f"{score['mean']:.1f} ± {score['std']:.1f}", each)
    protocol = result["protocol"]
    table.caption = (
        f"{protocol['num_epochs']} epochs, step size {protocol['lr']:.4g}; mean and standard "
        "deviation (of the population) over the networks"
    )
    Console().print(table)
