"""`trajmatch eval`: evaluates a distilled set and compares it with real images."""

from typing import Any

from trajmatch.cli.output import aligned, json_alone, print_json
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.sets import IN_TABLES, SETS, per_kb


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(EvalConfig, argv, "trajmatch eval", "file")

    # Import these, and torch with them, only now: --help and wrong arguments do not need them.
    from trajmatch import zoo
    from trajmatch.cli.device import with_device
    from trajmatch.cli.progress import Progress
    from trajmatch.evaluate import evaluate_artifact

    config = with_device(config)
    results: list[dict[str, Any]] = []

    unit = "epochs" if config.equal_steps is None else "steps"
    soft = zoo.load(config.file, config.data).label_kind == "logit"
    progress = Progress(config.total_rounds(soft), f"evaluation {unit}", config.quiet)
    try:
        with json_alone(config.json), progress:
            results.append(evaluate_artifact(config, progress, results.append))
    finally:
        # After a stop, this prints the result of the networks that were finished.
        for result in results:
            if config.json:
                print_json(result)
            else:
                _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    # True if the protocol tests each network several times: then there is a maximum to show.
    tested_often = "test_max" in result["distilled"]
    rows = [("network", *score_heads(result["distilled"]), "each network", "maximum %")]
    diverged = 0
    for scores in result["networks"]:
        for key in IN_TABLES:
            if (score := scores[key]) is not None:
                diverged += score["diverged"]
                values = score["errors"] if "errors" in score else score["accuracies"]
                each = " ".join(shown(score, value) for value in values)
                maximum = _mean_and_std(score["test_max"]) if tested_often else ""
                cells = score_cells(key, result["sets"][key], score)
                rows.append((scores["network"], *cells, each, maximum))
    # Omit the column of architectures if there is only one.
    first = 0 if len(result["networks"]) > 1 else 1
    name, per_class = result["dataset"]["name"], result["images_per_class"]
    print(f"{name}, images per class: {per_class}\n")
    print(aligned(*(row[first : None if tested_often else -1] for row in rows), rule=True))
    for scores in result["networks"]:
        if scores.get("robust") is not None:
            print(f"\n{scores['network']}: {robust_line(scores['robust'])}")
    print(f"\n{_caption(result, diverged)}")


def score_heads(score: dict[str, Any]) -> tuple[str, ...]:
    """Return the column heads for :func:`score_cells`, with accuracy or (for targets) error."""
    measure = ("test error",) if "errors" in score else ("test accuracy %", "% per kB")
    return ("trained on", "labels", "images", "values", "bytes", *measure)


def shown(score: dict[str, Any], value: float) -> str:
    """Format an accuracy or an error for a table."""
    return f"{value:.4g}" if "errors" in score else f"{value:.1f}"


def score_cells(name: str, size: dict[str, Any], score: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of training set ``name``; ``size`` is its entry in a result's ``sets``."""
    numbers = (size["images"], size["stored_values"], size["stored_bytes"])
    cells = (SETS[name].title, size["labels"], *(f"{number:,}" for number in numbers))
    if "errors" in score:
        return (*cells, _mean_and_std(score))
    return (*cells, _mean_and_std(score), per_kb(score["mean"], size["stored_bytes"]))


def robust_line(robust: dict[str, dict[str, float]]) -> str:
    """Format DD-Ranking's scores and the accuracy differences behind them as one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {score['mean']:.3g} +- {score['std']:.2g}"
        for name, score in robust.items()
    )


def _caption(result: dict[str, Any], diverged: int) -> str:
    protocol = result["protocol"]
    length = "{steps} steps" if protocol["steps"] else "{num_epochs} epochs"
    sentences = [
        f"protocol {protocol['name']}, {length.format(**protocol)}, step size {protocol['lr']:.4g}",
        "mean and standard deviation (of the population) over the networks",
        f"iterate: {result['selection']}",
    ]
    if "test_max" in result["distilled"]:
        sentences.append("the maximum is chosen on the test set, so it overestimates the accuracy")
    if "unfinished" in result:
        sentences.append("stopped: {done} of {of} networks".format(**result["unfinished"]))
    if result["k_center_features"]:
        features = result["k_center_features"]
        sentences.append(f"k-center and herding measure distances between {features}")
    if result["sets"]["distilled"]["labels"] == "soft" and "k_center_soft" not in result["sets"]:
        sentences.append(
            "to compare with soft-labelled real images, name an expert store with --experts"
        )
    if "errors" in result["distilled"]:
        sentences.append("errors are mean squared errors of the targets")
    if diverged:
        count = "outputs of 0" if "errors" in result["distilled"] else "0 % accuracy"
        sentences.append(f"{diverged} of the networks diverged and count as {count}")
    return "; ".join(sentences)


def _mean_and_std(score: dict[str, Any]) -> str:
    return f"{shown(score, score['mean'])} +- {shown(score, score['std'])}"
