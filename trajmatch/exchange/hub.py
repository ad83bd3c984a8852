"""Push to and pull from the Hugging Face hub, through the optional package ``huggingface_hub``."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trajmatch import artifact, files, interruption
from trajmatch.errors import UserError, as_user_error, closest
from trajmatch.exchange.config import PullConfig, PushConfig
from trajmatch.experts import Store
from trajmatch.experts import manifest as manifest_file
from trajmatch.experts.store_maintenance import verify
from trajmatch.lock import locked

#: Kind of repository for distilled sets and expert stores.
_KIND = "dataset"

# A part of a path on the hub: no "..", no hidden file, and no character that means something to a
# shell or to a pattern.
_PART = r"[\w+-][\w .+-]*"
_PATH = rf"{_PART}(?:/{_PART})*"
_ADDRESS = re.compile(rf"hf:(?P<repository>{_PART}/{_PART})(?:/(?P<path>{_PATH}))?/?")

#: Values of errno for the local disk, which are no fault of the hub.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

#: Number of names that a message lists.
_LISTED = 10


def push(config: PushConfig) -> str:
    """Upload a distilled set or an expert store; return its address.

    The repository is made if it does not exist. Of a store, only the files of its experts are
    uploaded. What has the same name in the repository is replaced, but stays in its history.

    Raises:
        UserError: The source is damaged, is neither a distilled set nor an expert store, or the hub
            refuses the upload.
    """
    repository, path = _parts(config.to)
    name = path or Path(os.path.abspath(config.source)).name
    _parts(f"hf:{repository}/{name}")
    _check(config.source)
    if config.source.is_dir():
        new = {f"{name}/{each}": config.source / each for each in Store.open(config.source).files}
    elif name.endswith(".safetensors"):
        new = {name: config.source}
    else:
        raise UserError(
            f"the name of a distilled set on the hub should end in .safetensors, but is {name}"
        )
    with _hub(config.to, config.quiet, f"nothing of {config.source} was pushed") as api:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api.create_repo(repository, repo_type=_KIND, exist_ok=True, private=config.private or None)
        if config.private and not api.repo_info(repository, repo_type=_KIND).private:
            raise UserError(
                f"{repository} exists and is public, so --private cannot hide what is pushed to "
                "it; give another repository, or make this one private on the hub"
            )
        there, stores, sets = _content(api, repository, "main")
        # A set inside the folder of a store could not be pulled.
        around = [each for each in stores if name.startswith(f"{each}/")]
        if lost := around or [each for each in sets if each.startswith(f"{name}/")]:
            raise UserError(
                f"{config.to}: the repository has {lost[0]}, and an expert store and a distilled "
                "set cannot share a folder; choose another name"
            )
        # Files of a larger store that had this name.
        own = re.compile(rf"{re.escape(name)}/(expert_\d+|preprocessing)\.safetensors")
        old = [each for each in there if own.fullmatch(each) and each not in new]
        operations: list[Any] = [CommitOperationAdd(each, new[each]) for each in new]
        operations += map(CommitOperationDelete, old)
        api.create_commit(repository, operations, commit_message=f"Push {name}", repo_type=_KIND)
    return f"hf:{repository}/{name}"


def pull(config: PullConfig) -> Path:
    """Download a distilled set or an expert store, check it, and return its path.

    Raises:
        UserError: The hub does not answer or lacks the set or store, the output exists, or the
            downloaded files are damaged. No file is left then.
    """
    repository, path = _parts(config.source)
    with _hub(config.source, config.quiet, "nothing was pulled") as api:
        # One commit for all files, although others may push meanwhile.
        commit = api.repo_info(repository, repo_type=_KIND, revision=config.revision).sha
        there, stores, sets = _content(api, repository, commit)
        known = [*sets, *stores]
        path = path or (known[0] if len(known) == 1 else None)
        if path is None or path not in known:
            listed = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
            wrong = f"has no {path!r}{closest(path, known)}" if path else "holds several"
            what = f"{wrong}; its distilled sets and expert stores are: {listed}"
            raise UserError(f"{repository} on the hub {what if known else 'holds no set or store'}")
        out = config.out or Path(path.rpartition("/")[2])
        if path in sets:
            artifact.warn_of_ending(out)
        with locked(out):
            files.remove_leftovers(out.absolute().parent)
            _check_new(out)
            with files.temporary_folder(out.absolute()) as folder:
                kind = {"repo_type": _KIND, "revision": commit, "local_dir": folder}
                fetch = partial(api.hf_hub_download, repository, **kind)
                if path in sets:
                    found = Path(fetch(path))
                else:
                    found = Path(fetch(f"{path}/{manifest_file.NAME}")).parent
                    names = Store(found, manifest_file.read(found)).files
                    if lacking := [each for each in names if f"{path}/{each}" not in there]:
                        raise UserError(f"{config.source} is incomplete: it lacks {lacking[0]}")
                    for each in names:
                        fetch(f"{path}/{each}")
                try:
                    _check(found)
                except UserError as error:
                    told = error.in_flags.replace(f"{found}", path)
                    raise UserError(f"{config.source} cannot be used: {told}") from error
                _check_new(out)
                files.move_into_place(found, out)
    return out


def _parts(address: str) -> tuple[str, str | None]:
    """Split ``hf:USER/REPOSITORY[/PATH]`` into repository and path."""
    if (match := _ADDRESS.fullmatch(address)) is None:
        raise UserError(
            "an address on the hub should be hf:USER/REPOSITORY or hf:USER/REPOSITORY/NAME, with "
            f"letters, digits, spaces and . _ + - in each name, but is {address!r}"
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


def _check_new(out: Path) -> None:
    """Raise UserError if ``out`` exists, even as an empty folder or a link to nothing."""
    if os.path.lexists(out):
        raise UserError(f"{out} already exists; choose another name with --out")


def _content(api: Any, repository: str, revision: str) -> tuple[list[str], list[str], list[str]]:
    """Return a repository's files that push() could have named, its stores and its sets."""
    with as_user_error("the server does not answer as the hub does: ", KeyError, TypeError):
        named = api.list_repo_files(repository, repo_type=_KIND, revision=revision)
    there = [each for each in named if re.fullmatch(_PATH, each)]
    ending = f"/{manifest_file.NAME}"
    stores = [each.removesuffix(ending) for each in there if each.endswith(ending)]
    inside = tuple(f"{store}/" for store in stores)
    sets = [each for each in there if each.endswith(".safetensors") and not each.startswith(inside)]
    return there, stores, sets


@contextlib.contextmanager
def _hub(address: str, quiet: bool, kept: str) -> Iterator[Any]:
    """Yield an ``HfApi``, whose errors become UserError; ``kept`` says what a stop leaves."""
    needs = f"{address} needs the package huggingface_hub; pip install trajmatch[hf]: "
    with as_user_error(needs, ModuleNotFoundError):
        from huggingface_hub import HfApi, errors, utils
    package: Any = utils
    package.logging.set_verbosity_error()  # it warns of every attempt
    if quiet:
        package.disable_progress_bars()
    api = HfApi()
    # HfHubHTTPError inherits from the error class of the HTTP library, which depends on the release
    # of huggingface_hub.
    kinds: Any = (OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__)
    try:
        yield api
    except interruption.Interrupted as stop:
        stop.kept = kept
        raise
    except UserError:
        raise
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise UserError(
            f"{address}: {api.endpoint} has no such repository, or the token gives no access to it "
            "(`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address}: the repository has no such --revision") from error
    except kinds as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        failed = f"the request to {api.endpoint} failed"
        if getattr(error, "errno", None) in _LOCAL:
            failed = "the files cannot be written"
        raise UserError(f"{address}: {failed}: {reason}") from error
