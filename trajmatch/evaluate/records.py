"""Folder of an evaluation, with a record of each trained network, for ``--resume``."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.experts.store import differences
from trajmatch.schema import convert
from trajmatch.training import Outcome

DESCRIPTION = "evaluation.json"
RESULT = "result.json"


class Records:
    """Records of trained networks: one JSON file each, written atomically.

    The folder is created if missing. ``description`` has everything that determines a record except
    the training set and the network. Raises UserError if the folder is not writable, or if it has
    records already and either ``resume`` is False or their description differs.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], resume: bool) -> None:
        self.folder = folder
        path = folder / DESCRIPTION
        wanted = {"format": "trajmatch eval", "version": 1, **description}
        if not path.exists():
            # Do not overwrite the result of another command.
            if (folder / RESULT).exists():
                raise UserError(
                    f"{folder} has a {RESULT} that no evaluation wrote; choose another --out"
                )
            files.check_writable(folder)
            files.write_json(path, wanted)
        elif not resume:
            raise UserError(
                f"{folder} holds an evaluation already; add --resume to continue it, or choose "
                "another --out"
            )
        found = files.read_json(path)
        have = {field: found.get(field) for field in wanted}
        if different := differences(have, wanted):
            settings = ", ".join(f"{name} = {of} (asked for: {to})" for name, of, to in different)
            raise UserError(
                f"{folder} holds an evaluation with {settings}; repeat the flags it was made with, "
                "or choose another --out"
            )

    def read(self, training_set: str, network: str) -> Outcome | None:
        """Return the recorded outcome, or None; raise UserError if the record is damaged."""
        path, advice = self._path(training_set, network), "; delete it and continue with --resume"
        if not path.exists():
            return None
        record = files.read_json(path)
        if record.get("network") != network:
            raise UserError(f"{path} is damaged: it belongs to another network{advice}")
        return convert(record, Outcome, f"{path} is damaged", advice)

    def write(self, training_set: str, network: str, outcome: Outcome) -> None:
        """Write the record of a trained network."""
        path = self._path(training_set, network)
        files.check_writable(path.parent)
        files.write_json(path, {"network": network, **asdict(outcome)})

    def _path(self, training_set: str, network: str) -> Path:
        return self.folder / training_set / f"{network}.json"
