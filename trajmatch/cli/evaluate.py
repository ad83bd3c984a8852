"""`trajmatch eval`: tests a distilled set beside real images."""

from __future__ import annotations

from typing import Any

from trajmatch.evaluate.config import EvalConfig

#: Sets of images in the order of the table, with what they are called there.
_LABELS = {
    "random_real": "random real images",
    "k_center": "real images by k-center",
    "whole_real": "all real images",
    "distilled": "distilled images",
}


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(EvalConfig, argv, "trajmatch eval", "file")

    from trajmatch.cli.device import with_device
    from trajmatch.cli.output import json_alone, print_json
    from trajmatch.cli.progress import Progress
    from trajmatch.evaluate import evaluate_artifact

    config = with_device(config)
    results: list[dict[str, Any]] = []

    unit = "epochs" if config.equal_steps is None else "steps"
    progress = Progress(config.total_rounds, f"evaluation {unit}", config.quiet)
    try:
        with json_alone(config.json), progress:
            results.append(evaluate_artifact(config, progress, results.append))
    finally:  # of an evaluation that is stopped, the networks that are finished
        for result in results:
            if config.json:
                print_json(result)
            else:
                _print_table(result)
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    name, per_class = result["dataset"]["name"], result["images_per_class"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{name}, images per class: {per_class}")
    several = len(result["networks"]) > 1
    if several:
        table.add_column("network")
    table.add_column("trained on", no_wrap=True)
    table.add_column("test accuracy %", justify="right")
    table.add_column("each network", justify="right")
    all_scores = [scores[key] for scores in result["networks"] for key in _LABELS if scores[key]]
    tested_often = "test_max" in all_scores[0]
    if tested_often:
        table.add_column("maximum %", justify="right")
    for scores in result["networks"]:
        name = [scores["network"]] if several else []
        for key, label in _LABELS.items():
            score = scores[key]
            if score is not None:
                each = " ".join(f"{accuracy:.1f}" for accuracy in score["accuracies"])
                maximum = [_mean_and_std(score["test_max"])] if tested_often else []
                table.add_row(*name, label, _mean_and_std(score), each, *maximum)
    table.caption = _caption(result, sum(score["diverged"] for score in all_scores))
    Console().print(table)


def _caption(result: dict[str, Any], diverged: int) -> str:
    protocol = result["protocol"]
    length = (
        f"{protocol['steps']} steps" if protocol["steps"] else f"{protocol['num_epochs']} epochs"
    )
    sentences = [
        f"protocol {protocol['name']}, {length}, step size {protocol['lr']:.4g}",
        "mean and standard deviation (of the population) over the networks",
        f"iterate: {result['selection']}",
    ]
    if "test_max" in result["distilled"]:
        sentences.append("the maximum over the tests is chosen on the test set and is no estimate")
    if "unfinished" in result:
        sentences.append("stopped: {done} of {of} networks".format(**result["unfinished"]))
    if result["k_center_features"]:
        sentences.append(f"k-center: {result['k_center_features']}")
    if diverged:
        sentences.append(f"{diverged} of the networks diverged and count as getting nothing right")
    return "; ".join(sentences)


def _mean_and_std(score: dict[str, Any]) -> str:
    return f"{score['mean']:.1f} +- {score['std']:.1f}"
