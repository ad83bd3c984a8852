"""Warnings about experts that are not worth matching, judged by their recorded health."""

import math
from statistics import fmean

from trajmatch.experts.config import spans
from trajmatch.experts.store import Store

#: An expert stands still in an epoch if its displacement is at most this fraction of its largest.
STILL = 1e-3
#: An expert is untrained if its test accuracy has covered less than this fraction of the way from
#: chance to 100 % (or its test error of the way from guessing to 0).
LEARNED = 0.1
#: An untrained expert has diverged if its loss ever exceeded this many times the loss of guessing.
EXPLODED = 10


def examine(store: Store) -> list[str]:
    """Return a sentence for each problem of a complete store's experts, worst problem first."""
    classes = max(1, len(store.manifest["dataset"]["class_names"]))
    chance, best, guessing = 100 / classes, 100.0, math.log(classes)
    failed = "reached less than {:.1f} % test accuracy ({:.1f} % is chance)"
    if store.loss == "mse":
        chance = guessing = store.metrics(0)["guessing"]
        best, failed = 0.0, "ended with a test error above {:.3g} ({:.3g} is guessing)"
    limit = chance + LEARNED * (best - chance)
    # Problems and advice, the worst first.
    signs = {
        "diverged: the training loss ended above both its first value and the loss of guessing "
        f"({guessing:.3g}), or once exceeded {EXPLODED} times the loss of guessing": "lower --lr",
        f"moved in one epoch less than {STILL:g} times as far as in another: segments from "
        "that epoch have nothing to match": "raise --lr",
        f"{failed.format(limit, chance)} after {store.reached}": "train longer or raise --lr",
    }
    diverged, still, untrained = signs
    found: dict[str, list[int]] = {sign: [] for sign in signs}
    for expert in range(store.num_experts):
        metrics = store.metrics(expert)
        losses, moved = metrics.get("train_loss", []), metrics.get("displacement", [])
        tested = metrics.get("test_error", metrics.get("test_accuracy", best))
        # Accuracies should be above the limit, errors below it; the product is then positive.
        learned = (tested - limit) * (best - chance) >= 0
        exploded = not learned and max(losses, default=0.0) > EXPLODED * guessing
        # Each expert is listed for its worst problem only.
        if losses and (exploded or losses[-1] > max(losses[0], guessing)):
            found[diverged].append(expert)
        elif moved and min(moved) <= STILL * max(moved):
            found[still].append(expert)
        elif not learned:
            found[untrained].append(expert)
    sentences = [f"{_experts(those)} {sign}" for sign, those in found.items() if those]
    # Advice on the worst problem alone: all experts share one learning rate, and the advice on a
    # second problem could contradict the first.
    gravest = next((advice for sign, advice in signs.items() if found[sign]), "")
    return [f"{sentences[0]}; {gravest} of `trajmatch expert`", *sentences[1:]] if sentences else []


def examine_window(
    store: Store, min_start_epoch: int, max_start_epoch: int, expert_epochs: int
) -> list[str]:
    """Return a list with a warning about start epochs after which the loss does not fall, or []."""
    losses = [store.metrics(expert).get("train_loss", []) for expert in range(store.num_experts)]
    # Converted experts have no recorded losses; then no start epoch is examined.
    shortest = min(map(len, losses), default=0)
    stale = [
        start
        for start in range(min_start_epoch, max_start_epoch)
        if start + expert_epochs <= shortest
        # losses[e - 1] is the mean loss of epoch e. Start epoch 0 has no loss of its own, so it is
        # compared with epoch 1, and skipped if the segment has one epoch.
        and fmean(each[start + expert_epochs - 1] for each in losses)
        >= fmean(each[max(0, start - 1)] for each in losses)
        and start + expert_epochs > 1
    ]
    if not stale:
        return []
    return [
        f"from start epochs {spans(stale)}, the experts' training loss does not fall over the "
        f"{expert_epochs} epochs to match, so there is little to learn from these segments; lower "
        "--max-start-epoch, or train the experts with another --lr"
    ]


def _experts(numbers: list[int]) -> str:
    return f"expert{'s' if len(numbers) > 1 else ''} {spans(numbers)}"
