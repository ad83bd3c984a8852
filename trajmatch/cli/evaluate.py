"""`trajmatch eval`: tests a distilled set beside real images."""

from __future__ import annotations

from typing import Any

from trajmatch.cli.output import aligned, json_alone, print_json
from trajmatch.evaluate.config import EvalConfig

#: Sets of images in the order of the table, with what they are called there.
_LABELS = {
    "random_real": "random real images",
    "k_center": "real images by k-center",
    "whole_real": "all real images",
    "distilled": "distilled images",
}


def run(argv: list[str]) -> int:
    """Run the command with its arguments, and return the exit status."""
    from trajmatch.cli.arguments import parse

    config = parse(EvalConfig, argv, "trajmatch eval", "file")

    from trajmatch.cli.device import with_device
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
    tested_often = "test_max" in result["distilled"]
    rows = [("network", "trained on", "test accuracy %", "each network", "maximum %")]
    diverged = 0
    for scores in result["networks"]:
        for key, label in _LABELS.items():
            if (score := scores[key]) is not None:
                diverged += score["diverged"]
                each = " ".join(f"{accuracy:.1f}" for accuracy in score["accuracies"])
                maximum = _mean_and_std(score["test_max"]) if tested_often else ""
                rows.append((scores["network"], label, _mean_and_std(score), each, maximum))
    first = 0 if len(result["networks"]) > 1 else 1
    name, per_class = result["dataset"]["name"], result["images_per_class"]
    print(f"{name}, images per class: {per_class}\n")
    print(aligned(*(row[first : None if tested_often else -1] for row in rows), rule=True))
    print(f"\n{_caption(result, diverged)}")


def _caption(result: dict[str, Any], diverged: int) -> str:
    protocol = result["protocol"]
    length = "{steps} steps" if protocol["steps"] else "{num_epochs} epochs"
    sentences = [
        f"protocol {protocol['name']}, {length.format(**protocol)}, step size {protocol['lr']:.4g}",
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
