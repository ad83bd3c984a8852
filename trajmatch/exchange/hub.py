"""Push to and pull from the Hugging Face hub, through the optional package ``huggingface_hub``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from trajmatch import artifact, files
from trajmatch.errors import UserError, as_user_error, closest
from trajmatch.exchange.config import PullConfig, PushConfig
from trajmatch.experts import Store
from trajmatch.experts.manifest import NAME as MANIFEST
from trajmatch.experts.store_maintenance import verify

#: Kind of repository for distilled sets and expert stores.
_KIND = "dataset"

_ADDRESS = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>.+?))?/?")


def push(config: PushConfig) -> str:
    """Upload a distilled set or an expert store; return its address.

    The repository is made if it does not exist. The hub keeps the history of a repository, so that
    a file of the same name is replaced, but not lost.

    Raises:
        UserError: The source is damaged, is neither a distilled set nor an expert store, or the hub
            does not accept it.
    """
    repository, path = _parts(config.to)
    _check(config.source)
    name = path or config.source.resolve().name
    if not (config.source.is_dir() or name.endswith(".safetensors")):
        raise UserError(
            f"the name of a distilled set on the hub should end in .safetensors, but is {name}"
        )
    upload = {"path_in_repo": name, "repo_id": repository, "repo_type": _KIND}
    with _hub(config.to) as api:
        api.create_repo(repository, repo_type=_KIND, exist_ok=True, private=config.private or None)
        if config.source.is_dir():
            # Hidden files are checkpoints and locks.
            api.upload_folder(folder_path=config.source, ignore_patterns=[".*"], **upload)
        else:
            api.upload_file(path_or_fileobj=config.source, **upload)
    return f"hf:{repository}/{name}"


def pull(config: PullConfig) -> Path:
    """Download a distilled set or an expert store, check it, and return its path.

    Raises:
        UserError: The hub does not answer or lacks the set or store, the output exists, or the
            downloaded files are damaged. Nothing is written then.
    """
    repository, path = _parts(config.source)
    with _hub(config.source) as api:
        held = api.list_repo_files(repository, repo_type=_KIND, revision=config.revision)
    stores = [f"{PurePosixPath(each).parent}" for each in held if each.endswith(f"/{MANIFEST}")]
    inside = tuple(f"{store}/" for store in stores)
    sets = [each for each in held if each.endswith(".safetensors") and not each.startswith(inside)]
    there = [*sets, *stores]
    if path is None and len(there) == 1:
        path = there[0]
    if path is None or path not in there:
        wanted = (
            f"has no {path!r}{closest(path, there)}"
            if path
            else "does not hold exactly one set or store"
        )
        raise UserError(
            f"{repository} on the hub {wanted}; its distilled sets and expert stores are: "
            f"{', '.join(there) or 'none'}"
        )
    out = config.out or Path(PurePosixPath(path).name)
    files.check_new(out)
    files.check_writable(out.absolute().parent)
    with TemporaryDirectory(prefix=".trajmatch-", dir=out.absolute().parent) as folder:
        with _hub(config.source) as api:
            api.snapshot_download(
                repository,
                repo_type=_KIND,
                revision=config.revision,
                allow_patterns=path if path in sets else f"{path}/*",
                local_dir=folder,
            )
        found = Path(folder, path)
        _check(found)
        if path in sets:
            files.write_bytes(out, found.read_bytes())
        else:
            with files.whole_folder(out) as store:
                for each in found.iterdir():
                    os.replace(each, store / each.name)
    return out


def _parts(address: str) -> tuple[str, str | None]:
    """Split ``hf:USER/REPOSITORY[/PATH]`` into repository and path."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"an address on the hub should be hf:USER/REPOSITORY or hf:USER/REPOSITORY/NAME, but "
            f"is {address!r}"
        )
    return match["repository"], match["path"]


def _check(path: Path) -> None:
    """Raise UserError unless a path holds an undamaged distilled set or complete expert store."""
    if not path.is_dir():
        artifact.load(path)
        return
    Store.open(path)
    for verdict in verify(path):
        if verdict.status not in ("ok", "no checksum"):
            raise UserError(verdict.detail or f"{verdict.path} is {verdict.status}")


@contextlib.contextmanager
def _hub(address: str) -> Iterator[Any]:
    """Yield an ``HfApi``, whose errors become UserError."""
    needs = f"{address} needs the package huggingface_hub; pip install trajmatch[hub]: "
    with as_user_error(needs, ModuleNotFoundError):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    api = HfApi()
    # Its base class is the error of the HTTP library, which depends on the release.
    kinds: Any = (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)
    try:
        yield api
    except kinds as error:
        raise UserError(
            f"{address}: the request to {api.endpoint} failed: {' '.join(f'{error}'.split())}"
            "; check the name, the connection, and the token (`hf auth login`)"
        ) from error
