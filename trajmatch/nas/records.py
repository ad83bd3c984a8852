"""Files of a search: the layout of its folder, and accuracies that were measured before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.evaluate.records import Layout, is_number

LAYOUT = Layout("nas", "search", "architecture", ("mean", "diverged", "seconds"))


def read_real_scores(path: Path, names: Iterable[str], fingerprint: str) -> dict[str, float]:
    """Accuracies on the real data from a file that was made before.

    Args:
        path: A JSON object with ``real``, accuracies by name; where it has a ``dataset`` with a
            ``fingerprint``, that is compared.
        names: The architectures that are needed.
        fingerprint: That of the data set.

    Returns:
        The accuracy of each, in percent, in the order of ``names``.

    Raises:
        UserError: The file cannot be used, is of another data set, or lacks an architecture.
    """
    content = files.read_json(path)
    scores, dataset = content.get("real"), content.get("dataset")
    if not isinstance(scores, dict) or not all(map(is_number, scores.values())):
        raise UserError(
            f'{path} should have "real": {{"d3-w128-relu-instance-average": 81.5, ...}}, one '
            "number for each architecture; give the result.json of a search"
        )
    found = dataset.get("fingerprint") if isinstance(dataset, dict) else None
    if found not in (None, fingerprint):
        raise UserError(
            f"the accuracies in {path} are of a data set with fingerprint {str(found)[:16]}..., "
            f"but this search is on one with {fingerprint[:16]}...; give those of the same data"
        )
    wanted = [*names]
    missing = [name for name in wanted if name not in scores]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} architectures, the first is "
            f"{missing[0]}; leave them out of the search, or train them without --real-scores"
        )
    return {name: float(scores[name]) for name in wanted}
