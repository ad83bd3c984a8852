"""`trajmatch store`: verifies, lists, trims, merges and convexifies stores of experts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trajmatch.cli.output import aligned
from trajmatch.errors import UserError, closest

if TYPE_CHECKING:
    from trajmatch.experts import Store
    from trajmatch.experts.store_maintenance import Verdict


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Compare files with their checksums; the exit status is 1 if one is damaged or missing."""

    paths: tuple[Path, ...]
    """Expert stores, or distilled sets and other files that trajmatch wrote."""
    quiet: bool = False
    """Print only damaged and missing files."""


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List the contents of expert stores, with warnings about unhealthy experts."""

    paths: tuple[Path, ...]
    """Stores."""


@dataclass(frozen=True, kw_only=True)
class TrimConfig:
    """Write a smaller store with some of the epochs and experts of a store."""

    path: Path
    """The store, which stays as it is."""
    out: Path
    """The new store: a folder that does not exist."""
    keep: str = "all"
    """Epochs t whose parameters theta*_t are kept, e.g. 0-22; the last epoch is always kept."""
    experts: str = "all"
    """Numbers of the experts to keep, e.g. 0-49,60."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge stores that differ only in seeds and numbers of experts."""

    paths: tuple[Path, ...]
    """The stores, which stay as they are."""
    out: Path
    """The new store: a folder that does not exist."""

    def __post_init__(self) -> None:
        """Raise UserError if there is only one store."""
        if len(self.paths) < 2:
            raise UserError("trajmatch store merge needs two stores or more")


@dataclass(frozen=True, kw_only=True)
class ConvexifyConfig:
    """Replace trajectories by lines between a few epochs (MCT), in a smaller store."""

    path: Path
    """The store, which stays as it is. It must hold all epochs (--keep all)."""
    out: Path
    """The new store: a folder that does not exist."""
    waypoints: str = "6,25"
    """Inner epochs where lines meet, the waypoints (MCT: 6,25 of 50). The first and last epochs are
    always waypoints."""


def run(argv: list[str]) -> int | None:
    """Run the command with its arguments; return 1 if a file is damaged or missing."""
    from trajmatch.cli.arguments import parse

    if not argv or argv[0] in ("-h", "--help"):
        actions = aligned(*((f"  {name}", str(_ACTIONS[name][0].__doc__)) for name in _ACTIONS))
        hint = "trajmatch store ACTION --help shows the arguments of an action."
        usage = f"usage: trajmatch store ACTION [ARGUMENTS]\n\n{actions}\n\n{hint}"
        print(usage, file=sys.stdout if argv else sys.stderr)
        raise SystemExit(0 if argv else 2)
    if argv[0] not in _ACTIONS:
        raise UserError(
            f"trajmatch store has no action {argv[0]!r}{closest(argv[0], _ACTIONS)}; it has "
            f"{', '.join(_ACTIONS)}"
        )
    config, positional, action = _ACTIONS[argv[0]]
    return action(parse(config, argv[1:], f"trajmatch store {argv[0]}", positional))


def _verify(config: VerifyConfig) -> int:
    counts: dict[str, int] = {}
    for path in config.paths:
        for verdict in verdicts(path):
            counts[verdict.status] = counts.get(verdict.status, 0) + 1
            if verdict.status in ("damaged", "missing") or not config.quiet:
                print(f"{verdict.status:11}  {verdict.detail or verdict.path}")
    if not config.quiet:
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if {"damaged", "missing"} & counts.keys() else 0


def verdicts(path: Path) -> Iterable[Verdict]:
    """Compare a store, distilled set or other file of tensors with its checksums.

    Returns a verdict on each file, as soon as it is known. Raises UserError if ``path`` is missing.
    """
    from trajmatch import artifact, files
    from trajmatch.experts.store_maintenance import judge, verify

    def read() -> None:
        # Loading a distilled set checks more than the checksum: also its description.
        if files.read_metadata(path).get("format") == artifact.FORMAT:
            artifact.load(path)
        else:
            files.load_tensors(path)

    if not path.exists():
        raise UserError(f"there is no {path}; give an expert store, or a file that trajmatch wrote")
    return verify(path) if path.is_dir() else [judge(path, read)]


def _list(config: ListConfig) -> None:
    from trajmatch.experts import Store

    for path in config.paths:
        print("\n".join(described(Store.open(path, complete=False))))


def _make(action: str, config: TrimConfig | MergeConfig | ConvexifyConfig) -> None:
    """Make a store with the function ``action`` of :mod:`trajmatch.experts.store_maintenance`."""
    from trajmatch.experts import store_maintenance

    # The fields of the configuration are the arguments of the function.
    store = getattr(store_maintenance, action)(**vars(config))
    print(f"{store.path}: {store.num_experts} experts, {_bytes(store)}")


#: Actions by name: the configuration, its positional field, and the function to call.
_ACTIONS: dict[str, tuple[type[Any], str, Callable[[Any], int | None]]] = {
    "verify": (VerifyConfig, "paths", _verify),
    "ls": (ListConfig, "paths", _list),
    "trim": (TrimConfig, "path", partial(_make, "trim")),
    "merge": (MergeConfig, "paths", partial(_make, "merge")),
    "convexify": (ConvexifyConfig, "path", partial(_make, "convexify")),
}


def described(store: Store) -> list[str]:
    """Return lines of text about a store, which may lack experts."""
    from trajmatch.experts.config import spans
    from trajmatch.experts.health import examine

    manifest, missing, there = store.manifest, store.missing(), store.finished()
    network, data, seed = dict(manifest["network"]), manifest["dataset"], manifest["seed"]
    # Stores from files of other programs, or merged from several seeds, have no seed.
    if seed is None:
        seed = "several, see sources in store.json" if "sources" in manifest else "unknown"
    points = manifest.get("waypoints")
    whole = f", {len(missing)} missing ({spans(missing)})" if missing else ""
    lines = {
        "experts": f"{len(there)} of {store.num_experts}{whole}, seed {seed}",
        "network": f"{network.pop('name', None)} ({_listed(network)})",
        "data": f"{data['name']}, {len(data['class_names'])} classes, shape {data['shape']}, "
        f"held out {manifest['holdout']['fraction']:g}",
        "preprocessing": manifest["preprocessing"].get("kind", "normalised channels"),
        "recipe": _listed(manifest["recipe"]),
        "epochs kept": f"{spans(store.snapshots_kept)}, trained to {store.reached}",
        **({"lines": f"between epochs {spans(points['epochs'])}"} if points else {}),
        "size": f"{_bytes(store)}, {manifest['dtype']}",
    }
    metrics = [store.metrics(expert) for expert in there]
    if found := [each["test_accuracy"] for each in metrics if "test_accuracy" in each]:
        range_ = f"{fmean(found):.1f} (from {min(found):.1f} to {max(found):.1f})"
        lines["accuracy"] = f"{range_} % on the test images after {store.reached}"
    if found := [each["test_error"] for each in metrics if "test_error" in each]:
        range_ = f"{fmean(found):.4g} (from {min(found):.4g} to {max(found):.4g})"
        lines["test error"] = f"{range_}, mean squared, after {store.reached}"
    for name, what in (("displacement", "displacement"), ("train_loss", "training loss")):
        # Each row has one number per epoch; show means over the experts.
        if rows := [each[name] for each in metrics if each.get(name)]:
            first, last = (fmean(row[end] for row in rows) for end in (0, -1))
            lines[what] = f"{first:.4g} in the first epoch, {last:.4g} in the last"
    # Only a complete store can be examined.
    signs = [] if missing else examine(store)
    return [
        f"{store.path}",
        *(f"  {what:13} {text}" for what, text in lines.items()),
        *(f"  unhealthy     {sign}" for sign in signs),
    ]


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _bytes(store: Store) -> str:
    """Return the size of a store's files as text."""
    total = sum(path.stat().st_size for path in store.path.iterdir() if path.is_file())
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if total >= size:
            return f"{total / size:.3g} {unit}"
    return f"{total / 1e3:.3g} kB"
