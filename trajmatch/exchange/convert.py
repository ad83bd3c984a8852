"""Conversion of experts and distilled sets between the papers' format and this package's format."""

from trajmatch import files
from trajmatch.data.reading import readable
from trajmatch.errors import UserError
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.sets import find_images, from_artifact, to_artifact
from trajmatch.exchange.trajectories import find_trajectories, from_store, to_store
from trajmatch.experts import store as expert_store
from trajmatch.lock import locked
from trajmatch.progress import NoProgress, ProgressLike
from trajmatch.schema import flag

#: Flags for facts that the papers' files lack.
_ORIGIN = ("data", "recipe", "network", "preprocessing", "mean", "std", "dsa")


def convert(config: ConvertConfig, progress: ProgressLike | None = None) -> str:
    """Convert experts or a distilled set from the papers' format to this package's, or back.

    Returns a summary sentence. On failure nothing is written.

    Args:
        config: The source, the output, and facts that the source files lack.
        progress: Updated with the number of converted trajectory files.

    Raises:
        UserError: The source cannot be converted, or a flag is missing or does not apply.
    """
    source = config.source
    with readable(str(source)):
        is_there, is_store = source.exists(), expert_store.exists(source)
    if not is_there:
        raise UserError(f"there is no {source}")
    # Check only while holding the lock: before, another process could still create the output.
    with locked(config.out):
        files.check_new(config.out)
        if is_store:
            _check_flags(config, "a store of experts", "per_file")
            return from_store(config)
        if trajectories := find_trajectories(source):
            _check_flags(config, "a file of trajectories", *_ORIGIN, "keep")
            return to_store(config, trajectories, progress or NoProgress())
        if images := find_images(source):
            _check_flags(config, "a distilled set of the papers' scripts", *_ORIGIN, "lr", "labels")
            return to_artifact(config, images)
        if source.is_file() and source.suffix == ".safetensors":
            _check_flags(config, "a distilled set")
            return from_artifact(config)
    raise UserError(
        f"{source} cannot be converted; give replay_buffer_*.pt or images_*.pt (or "
        "the folder that holds them), the folder of a store of experts, or a distilled set "
        "(.safetensors)"
    )


def _check_flags(config: ConvertConfig, kind: str, *allowed: str) -> None:
    """Raise UserError for flags that would have no effect."""
    # Only flags that differ from their default count as given.
    for name in config.chosen(ConvertConfig):
        if name not in ("source", "out", "quiet", *allowed):
            raise UserError(f"{config.source} is {kind}: {flag(name)} does not apply; leave it out")
