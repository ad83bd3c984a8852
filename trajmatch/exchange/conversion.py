"""Conversion between the papers' files and ours; what the source is decides the direction."""

from __future__ import annotations

import dataclasses

from trajmatch import artifact, files
from trajmatch.data.reading import readable
from trajmatch.errors import UserError
from trajmatch.exchange.buffers import find_buffers
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.origin import find_origin
from trajmatch.exchange.sets import SetFiles, find_set, lacking, read_set, write_set
from trajmatch.exchange.trajectories import from_store, to_store
from trajmatch.exchange.whole import check_new, whole_folder
from trajmatch.experts import store as expert_store
from trajmatch.lock import locked
from trajmatch.progress import NoProgress, ProgressLike

#: Flags that say what the papers' files do not say of themselves.
_ORIGIN = ("data", "recipe", "network", "preprocessing", "mean", "std", "dsa")


def convert(config: ConvertConfig, progress: ProgressLike | None = None) -> str:
    """Converts a source into the other form of it; see :class:`ConvertConfig`.

    What is written appears as a whole or not at all. Files are read one at a time, and of a file
    one expert at a time.

    Args:
        config: What to convert, and what its files do not say.
        progress: Told how many files of trajectories are done.

    Returns:
        What was made, in a sentence.

    Raises:
        UserError: The source is none of the four kinds, cannot be used, does not fit what is said
            of it, or a flag is missing or does not belong to this direction.
    """
    source = config.source
    with readable(str(source)):
        is_there, is_store = source.exists(), expert_store.exists(source)
    if not is_there:
        raise UserError(f"there is no {source}")
    check_new(config.out)
    with locked(config.out):
        return _convert(config, is_store, progress or NoProgress())


def _convert(config: ConvertConfig, is_store: bool, progress: ProgressLike) -> str:
    """Convert while the output is locked; what is written there is still new then."""
    source = config.source
    check_new(config.out)
    if is_store:
        _check_flags(config, "a store of experts", "per_file")
        return from_store(config)
    if buffers := find_buffers(source):
        _check_flags(config, "a file of trajectories", *_ORIGIN, "keep")
        return to_store(config, buffers, progress)
    if found := find_set(source):
        _check_flags(config, "a distilled set of the papers' scripts", *_ORIGIN, "lr", "labels")
        return _to_artifact(config, found)
    if source.is_file() and source.suffix == ".safetensors":
        _check_flags(config, "a distilled set")
        return _from_artifact(config)
    raise UserError(
        f"{source} is nothing that can be converted; give replay_buffer_*.pt or images_*.pt (or "
        "the folder that holds them), the folder of a store of experts, or a distilled set "
        "(.safetensors)"
    )


def _check_flags(config: ConvertConfig, kind: str, *allowed: str) -> None:
    """Makes sure that nothing is given that would be without effect."""
    for field in dataclasses.fields(config):
        common = field.name in ("source", "out", "quiet")
        if not common and field.name not in allowed and getattr(config, field.name) is not None:
            raise UserError(
                f"--{field.name.replace('_', '-')} says nothing about {kind}, which "
                f"{config.source} is; leave it out"
            )


def _to_artifact(config: ConvertConfig, found: SetFiles) -> str:
    artifact.warn_of_ending(config.out)
    distilled = read_set(found, find_origin(config, lacking(found, config)), config)
    files.check_writable(config.out.parent)
    artifact.save(config.out, distilled)
    return (
        f"{config.out}: {len(distilled.images)} images of {distilled.num_classes} classes, "
        f"step size {distilled.lr:g}"
    )


def _from_artifact(config: ConvertConfig) -> str:
    distilled = artifact.load(config.source)
    with whole_folder(config.out) as folder:
        write_set(distilled, folder)
    return f"{config.out}: images.pt, labels.pt and lr.pt of {len(distilled.images)} images"
