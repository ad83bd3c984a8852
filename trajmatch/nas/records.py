"""The folder of a search: what it is, and one record for each network that was trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.errors import UserError

#: First words of the description, and what readers of it may rely on.
FORMAT = {"format": "trajmatch nas", "version": 1}
DESCRIPTION = "search.json"
RESULT = "result.json"


class Records:
    """Records of a search, each a JSON file that is written whole or not at all.

    Args:
        folder: Where they are; made by :meth:`open`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, description: Mapping[str, Any], resume: bool) -> Records:
        """Begins a search, or goes on with one.

        Args:
            folder: Where its records are to be.
            description: All that decides an architecture's accuracy, as JSON can hold it.
            resume: Whether to go on where there is a search already.

        Returns:
            The records.

        Raises:
            UserError: There is a search already, or one of another description; or the folder
                cannot be written.
        """
        path, wanted = folder / DESCRIPTION, {**FORMAT, **description}
        if not path.exists():
            for kind in ("proxy", "real"):
                files.check_writable(folder / kind)
            files.write_json(path, wanted)
            return cls(folder)
        if not resume:
            raise UserError(
                f"{folder} holds a search already; add --resume to go on with it, or choose "
                "another --out"
            )
        have = files.read_json(path)
        for field, value in wanted.items():
            if have.get(field) != value:
                raise UserError(
                    f"{folder} holds a search with {field} = {have.get(field)}, but {value} is "
                    "asked for; repeat the flags it was made with, or choose another --out"
                )
        return cls(folder)

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        """The record of an architecture, if it is there.

        Args:
            kind: ``"proxy"`` or ``"real"``.
            name: The architecture's.

        Raises:
            UserError: It is damaged.
        """
        path = self._path(kind, name)
        if not path.exists():
            return None
        record = files.read_json(path)
        if record.get("architecture") != name or not _is_number(record.get("mean")):
            raise UserError(f"{path} is damaged; delete it and go on with --resume")
        return record

    def write(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Writes the record of an architecture; see :meth:`read`."""
        files.write_json(self._path(kind, name), {"architecture": name, **record})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes what the whole search found."""
        files.write_json(self._folder / RESULT, dict(result))

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / kind / f"{name}.json"


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
    if not isinstance(scores, dict) or not all(map(_is_number, scores.values())):
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
