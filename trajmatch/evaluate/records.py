"""A folder of results that a search or an evaluation goes on from: a record for each training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.experts.store import differences

RESULT = "result.json"


class Layout(NamedTuple):
    """Names in the folder of one command.

    Attributes:
        command: The command of ``trajmatch``.
        what: The content of the folder, for people; ``{what}.json`` describes it.
        key: Field of a record that has its name.
        fields: Other fields of every record; the first is a number.
    """

    command: str
    what: str
    key: str
    fields: tuple[str, ...]


class Records:
    """Records of trainings, each a JSON file that is written whole or not at all.

    Args:
        folder: Their folder; made by :meth:`open`.
        layout: Names in the folder.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self._layout = folder, layout

    @classmethod
    def open(
        cls, folder: Path, layout: Layout, description: Mapping[str, Any], resume: bool
    ) -> Records:
        """Begin with no record, or go on with those that are there.

        Args:
            folder: Folder of the records.
            layout: Names in the folder.
            description: All that decides the content of a record but its kind and name, as JSON can
                hold it.
            resume: True to go on where there are records already.

        Returns:
            The records.

        Raises:
            UserError: There are records already, or some of another description; or the folder
                cannot be written.
        """
        what = layout.what
        path = folder / f"{what}.json"
        wanted = {"format": f"trajmatch {layout.command}", "version": 1, **description}
        if not path.exists():
            if (folder / RESULT).exists():
                raise UserError(
                    f"{folder} has a {RESULT} that is of no {what}; choose another --out"
                )
            files.check_writable(folder)
            files.write_json(path, wanted)
            return cls(folder, layout)
        if not resume:
            raise UserError(
                f"{folder} holds {_article(what)} already; add --resume to go on with it, or "
                "choose another --out"
            )
        found = files.read_json(path)
        have = {field: found.get(field) for field in wanted}
        if different := differences(have, wanted):
            settings = ", ".join(f"{name} = {of} (asked for: {to})" for name, of, to in different)
            raise UserError(
                f"{folder} holds {_article(what)} with {settings}; repeat the flags it was made "
                "with, or choose another --out"
            )
        return cls(folder, layout)

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        """The record of a training, if it is there.

        Args:
            kind: Its kind, the name of a folder.
            name: Its name.

        Raises:
            UserError: It is damaged.
        """
        path, layout = self._path(kind, name), self._layout
        if not path.exists():
            return None
        record = files.read_json(path)
        if (
            record.get(layout.key) != name
            or not record.keys() >= {*layout.fields}
            or not is_number(record[layout.fields[0]])
        ):
            raise UserError(f"{path} is damaged; delete it and go on with --resume")
        return record

    def write(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Write the record of a training; see :meth:`read`."""
        path = self._path(kind, name)
        files.check_writable(path.parent)
        files.write_json(path, {self._layout.key: name, **record})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result of all trainings."""
        files.write_json(self.folder / RESULT, dict(result))

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.json"


def is_number(value: object) -> bool:
    """True if a value from a file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
