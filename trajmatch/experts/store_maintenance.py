"""Maintenance of expert stores: verify, trim, merge, convexify."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trajmatch import files, networks
from trajmatch.errors import UserError
from trajmatch.experts import manifest as manifest_file
from trajmatch.experts.config import kept_epochs, numbers_of
from trajmatch.experts.store import PREPROCESSING, Store, differences
from trajmatch.experts.waypoints import convexified
from trajmatch.lock import locked

#: Manifest entries that may differ between stores to merge.
_FREE = ("data", "num_experts", "seed", "sources", "format", "version")


class Verdict(NamedTuple):
    """Verdict of a check on one file."""

    path: Path
    # "ok", "missing", "unfinished", "damaged", or "no checksum": readable, but nothing to compare.
    status: str
    detail: str = ""


def verify(path: files.PathLike) -> Iterator[Verdict]:
    """Yield a verdict on each file of a store: read it and compare it with its checksum."""
    path = Path(path)
    try:
        store = Store(path, manifest_file.read(path))
    except UserError as error:
        yield Verdict(path / manifest_file.NAME, "damaged", f"{error}")
        return
    stored = files.read_json(path / manifest_file.NAME)
    status = "ok" if files.CHECKSUM in stored else "no checksum"
    yield Verdict(path / manifest_file.NAME, status)
    if (path / PREPROCESSING).exists() or store.manifest["preprocessing"].get("kind"):
        yield judge(path / PREPROCESSING, lambda: store.zca)
    for expert in range(store.num_experts):
        yield _judge_expert(store, expert)


def _judge_expert(store: Store, expert: int) -> Verdict:
    """Return the verdict on an expert's file or, if the file is missing, on its checkpoint."""
    file, checkpoint = store.expert_path(expert), store.checkpoint_path(expert)
    if file.exists():
        verdict = judge(file, partial(store.check_whole, expert))
        if verdict.status == "damaged" or store.epochs_of(expert) >= store.trained_epochs:
            return verdict
    elif checkpoint.exists():
        verdict = judge(checkpoint, partial(files.load_tensors, checkpoint))
    else:
        return Verdict(file, "missing")
    # A checkpoint, or a file with fewer epochs than the store asks for.
    return verdict if verdict.status == "damaged" else verdict._replace(status="unfinished")


def trim(
    path: files.PathLike, out: files.PathLike, keep: str = "all", experts: str = "all"
) -> Store:
    """Write a new store with some epochs and experts of another store, unchanged bit for bit.

    ``keep`` lists epochs, e.g. ``"0-22"``; the last epoch is always kept. ``experts`` lists
    experts, e.g. ``"0-49"``; ``"all"`` keeps every finished expert. If these are the first experts,
    the new store equals one trained with the same ``--keep`` and number of experts. Otherwise its
    manifest names the source of each expert.
    """
    store = Store.open(path, complete=False)
    there, epochs = store.finished(), store.manifest["snapshots"]
    chosen, kept = there, epochs
    if experts != "all":
        chosen = sorted(numbers_of(experts, store.num_experts - 1, "experts", "experts"))
    if keep != "all":
        kept = kept_epochs(keep, store.course)
    for what, wanted, have in (("expert", chosen, there), ("epoch", kept, epochs)):
        if lacking := sorted({*wanted} - {*have}):
            raise UserError(f"{path} has no {what} {lacking[0]}; choose among those that it has")
    members = [(store, expert) for expert in chosen]
    return _assemble(Path(out), {**store.manifest, "snapshots": kept}, members)


def merge(paths: Sequence[files.PathLike], out: files.PathLike) -> Store:
    """Write a store with the finished experts of several stores, ordered by seed and number.

    The stores may differ only in seed, number of experts and location of the data. An expert that
    is in several stores is taken once; UserError is raised if its copies differ.
    """
    stores = [Store.open(path, complete=False) for path in paths]
    members: dict[tuple[int, int], tuple[Store, int]] = {}
    for store in stores:
        _check_same_kind(stores[0], store)
        for expert in store.finished():
            origin = store.origin(expert)
            # Seed and number identify an expert, whatever its number in this store.
            key = origin["seed"], origin["expert"]
            earlier, number = members.setdefault(key, (store, expert))
            if earlier is not store and not _same_expert(earlier, number, store, expert):
                raise UserError(
                    f"{earlier.expert_path(number)} and {store.expert_path(expert)} are both "
                    f"expert {key[1]} of seed {key[0]}, but differ; leave one of the stores out, "
                    "or that expert (`trajmatch store trim --experts`)"
                )
    return _assemble(Path(out), stores[0].manifest, [members[key] for key in sorted(members)])


def convexify(path: files.PathLike, out: files.PathLike, waypoints: str = "6,25") -> Store:
    """Write a store whose experts move on straight lines between a few waypoints (MCT).

    ``waypoints`` lists the epochs of the inner waypoints (MCT: ``"6,25"`` of 50 epochs); the first
    and last epochs are always waypoints. The store must keep all epochs, and the network must have
    no buffers.
    """
    store = Store.open(path, complete=False)
    store.check_trained(store.course, "trajmatch store convexify")
    if "waypoints" in store.manifest:
        raise UserError(f"{path} is already convexified; give the original store")
    # The last waypoint averages three snapshots, so two epochs are the minimum.
    if lacking := sorted({*range(max(2, store.course) + 1)}.difference(store.snapshots_kept)):
        raise UserError(
            f"{path} does not keep epoch {lacking[0]}; to convexify, train experts for at least "
            "2 epochs with --keep all"
        )
    model = networks.build(store.manifest["network"])
    if networks.num_buffers(model):
        raise UserError(
            f"the network of {path} has buffers (running statistics of batch norm), which cannot "
            "be interpolated; convexify experts without them"
        )
    # The user may list the ends, which are waypoints anyway.
    inner = sorted(numbers_of(waypoints, store.course, "waypoints", "epochs") - {0, store.course})
    layers = [shape.numel() for shape in networks.parameter_shapes(model).values()]

    def write(source: Store, expert: int, new: Store, number: int) -> None:
        trajectory = [source.snapshot(expert, epoch) for epoch in source.snapshots_kept]
        points, shares = convexified(torch.stack(trajectory), inner, layers)
        new.write_expert(number, points, source.metrics(expert), shares=shares)

    entry = {"epochs": [0, *inner, store.course], "layers": layers}
    members = [(store, expert) for expert in store.finished()]
    return _assemble(Path(out), {**store.manifest, "waypoints": entry}, members, write)


def _assemble(
    out: Path,
    manifest: dict[str, Any],
    members: Sequence[tuple[Store, int]],
    write: Callable[[Store, int, Store, int], None] | None = None,
) -> Store:
    """Write a new store atomically; ``write`` converts each expert (default: copies it)."""
    if not members:
        raise UserError(f"there is no finished expert to write to {out}")
    origins = [store.origin(expert) for store, expert in members]
    seeds = {origin["seed"] for origin in origins}
    # A store has one seed only if all of its experts have the same.
    seed = seeds.pop() if len(seeds) == 1 else None
    described = {
        **{name: value for name, value in manifest.items() if name not in _FREE},
        "data": manifest["data"],
        "seed": seed,
        "num_experts": len(members),
    }
    # Sources are needed unless every expert has the store's seed and its own number.
    if origins != [{"seed": seed, "expert": number} for number in range(len(members))]:
        described["sources"] = origins
    with locked(out):
        if out.exists():
            raise UserError(f"{out} already exists; choose a new folder for --out")
        files.remove_leftovers(out.parent)
        with files.whole_folder(out) as building:
            store = Store.create(building, described, members[0][0].zca)
            for number, (source, expert) in enumerate(members):
                (write or _copy)(source, expert, store, number)
    return Store.open(out)


def _copy(source: Store, expert: int, store: Store, number: int) -> None:
    """Copy an expert's file, reduced to the epochs that the new store keeps."""
    tensors, _ = files.load_tensors(source.expert_path(expert))
    rows = [source.snapshots_kept.index(epoch) for epoch in store.snapshots_kept]
    kept = {name: tensors.pop(name)[rows] for name in {"buffers", "shares"} & tensors.keys()}
    snapshots, metrics = tensors.pop("snapshots"), source.metrics(expert)
    # Convexified experts need all waypoints, whatever epochs are kept; only their `shares` shrink.
    snapshots = snapshots if "waypoints" in store.manifest else snapshots[rows]
    # The tensors left after the pops are the training state of an unfinished course.
    store.write_expert(
        number, snapshots, metrics, kept.get("buffers"), tensors or None, kept.get("shares")
    )


def _check_same_kind(first: Store, other: Store) -> None:
    """Raise UserError if two stores differ in an entry that is not in :data:`_FREE`."""
    # The seed of the held-out part matters only if there is one.
    whole = first.manifest["holdout"]["fraction"] == 0
    for field, have, want in differences(first.manifest, other.manifest):
        if field.partition(".")[0] not in _FREE and not (whole and field == "holdout.seed"):
            raise UserError(
                f"{first.path} and {other.path} cannot be merged, because their {field} differ: "
                f"{have!r:.100} and {want!r:.100}"
            )


def _same_expert(one: Store, number: int, other: Store, expert: int) -> bool:
    mine, _ = files.load_tensors(one.expert_path(number))
    theirs, _ = files.load_tensors(other.expert_path(expert))
    return mine.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
    )


def judge(path: files.PathLike, read: Callable[[], object]) -> Verdict:
    """Return the verdict on a file: damaged if ``read()`` raises UserError."""
    try:
        read()
        return Verdict(Path(path), "ok" if files.has_checksum(path) else "no checksum")
    except UserError as error:
        return Verdict(Path(path), "damaged", f"{error}")
