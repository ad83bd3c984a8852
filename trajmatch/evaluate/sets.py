"""Training sets of an evaluation, by their names in the result."""

from typing import Literal, NamedTuple


class TrainingSet(NamedTuple):
    """Kind of a training set: title in tables, images, labels and augmentation.

    ``labels`` are ``"hard"``, ``"soft"`` (for real images: logits of the experts) or ``"own"``, the
    kind that the distilled set has. ``augmented`` is False for training without augmentation.
    """

    title: str
    images: Literal["distilled", "random", "k_center", "herding", "whole"]
    labels: Literal["own", "hard", "soft"] = "hard"
    augmented: bool = True


#: All sets, in the order in which networks are trained on them.
SETS = {
    "distilled": TrainingSet("distilled images", "distilled", "own"),
    "distilled_hard": TrainingSet("distilled images", "distilled"),
    "random_real": TrainingSet("random real images", "random"),
    "random_real_soft": TrainingSet("random real images", "random", "soft"),
    "k_center": TrainingSet("real images by k-center", "k_center"),
    "k_center_soft": TrainingSet("real images by k-center", "k_center", "soft"),
    "herding": TrainingSet("real images by herding", "herding"),
    "herding_soft": TrainingSet("real images by herding", "herding", "soft"),
    "whole_real": TrainingSet("all real images", "whole"),
    "distilled_plain": TrainingSet("distilled images, no DSA", "distilled", "own", False),
    "random_real_plain": TrainingSet("random real images, no DSA", "random", "own", False),
}

#: Names of all sets in the order of tables: real images first.
IN_TABLES = sorted(SETS, key=lambda name: SETS[name].images == "distilled")


def named(name: str) -> str:
    """Return the title of a set and its kind of labels, for tables without a column of labels."""
    kind = SETS[name]
    # Leave out the kind of labels if the set has only one kind.
    own = kind.labels == "own" or kind.images == "whole"
    return kind.title if own else f"{kind.title}, {kind.labels} labels"


def per_kb(accuracy: float, stored_bytes: int) -> str:
    """Format the accuracy in percent per 1,000 stored bytes, e.g. ``0.29``."""
    return f"{1000 * accuracy / stored_bytes:.3g}"
