"""`trajmatch zoo`: lists the distilled sets of the package, or explains one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajmatch.cli.output import aligned, print_json


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """List the distilled sets that are part of the package, or explain one.

    trajmatch eval, show and export take zoo:NAME in place of a file.
    """

    name: str | None = None
    """A set to explain, with or without zoo: before its name."""
    json: bool = False
    """Print only JSON: a list of objects, even for a single set."""


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ZooConfig, argv, "trajmatch zoo", "name")

    from trajmatch import files, zoo

    names = [config.name.removeprefix(files.ZOO)] if config.name else [*zoo.index()]
    found = [zoo.describe(name) for name in names]
    if config.json:
        print_json(found)
        return
    heads = ("set", "data", "images", "labels", "bytes", "test accuracy %", "evaluation")
    print(aligned(heads, *map(_row, found), rule=True))
    if config.name:
        print(f"\n{explained(found[0])}")


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    score = found["scores"][-1]
    return (
        found["name"],
        found["dataset_name"],
        f"{found['images']:,}",
        found["labels"],
        f"{found['stored_bytes']:,}",
        f"{score['mean']:.1f} +- {score['std']:.1f}",
        f"{len(score['accuracies'])} x {score['protocol']['network']['name']}",
    )


def explained(found: Mapping[str, Any]) -> str:
    """Return everything that is known about a set, one fact per line."""
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in found.items()
        if key not in ("name", "format", "format_version", "label_kind")
    )
