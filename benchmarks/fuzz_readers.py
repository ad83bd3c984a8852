"""Damages files in thousands of ways, and makes every reader read them.

    python benchmarks/fuzz_readers.py --files 10000

For each reader so many files are made from valid ones: bits flipped, parts cut off, taken out,
doubled or moved, numbers of the header changed, values of the description exchanged for others,
with the old checksum, with a right one and with none. A reader may do two things with such a file:
refuse it by the project's own error, or, where the checksum still fits or the file is a valid other
one, read it. Anything else is a failure: another exception, content that differs from the valid
file's in spite of its checksum, more than 10 seconds of computing, or 64 MB of memory beyond what
the valid file takes.

Prints one line for each reader; the status is 1 if one failed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from kill_runs import Run, write_data

from trajmatch import artifact, files
from trajmatch.cli.arguments import parse
from trajmatch.data import load_dataset
from trajmatch.distill import checkpoint
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import Store
from trajmatch.experts.checkpoint import Checkpoints
from trajmatch.recipes import find_recipe
from trajmatch.recipes.recipe import FOLDER, load_recipe

MEMORY = 64 * 2**20
SECONDS = 10.0

#: What takes the place of a value in a description.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    1e308,
    -0.5,
    "",
    "../../etc/passwd",
    "\x00",
    "a" * 5000,
    [],
    {},
    [[]],
    [0] * 1000,
    {"name": "convnet"},
)
#: Texts that no value gives: too deep, too large, no numbers of JSON.
TEXTS = ("[" * 100_000, "1" * 5000, "1e999", "NaN", '"\\ud800"', "9" * 400, "[]" + " " * 9000)


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """Make every reader read damaged files."""

    files: int = 10_000
    """Damaged files for each reader."""
    seed: int = 0
    """Seed of the damage."""
    keep: Path | None = None
    """Folder for the files at which a reader failed."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: What it reads.
        path: A valid file, which is damaged in place.
        read: Reads it (and what belongs to it), and returns all of the content as JSON.
        checked: Whether a changed file is refused, since it has a checksum.
    """

    name: str
    path: Path
    read: Callable[[], Any]
    checked: bool = True


@dataclass
class Count:
    """What became of the files of a reader."""

    refused: int = 0
    read: int = 0
    failed: int = 0


class TooLong(Exception):
    """A reader took too long."""


def fuzz(config: FuzzConfig, readers: list[Reader]) -> dict[str, Count]:
    """Makes readers read damaged files.

    Args:
        config: How many, and from which seed.
        readers: The readers, each with a valid file.
    """
    draws = random.Random(config.seed)
    counts: dict[str, Count] = {}
    for reader in readers:
        valid = reader.path.read_bytes()
        wanted = reader.read()
        count = counts.setdefault(reader.name, Count())
        with _limits():
            for number in range(config.files):
                damaged, forged = damage(valid, draws)
                reader.path.write_bytes(damaged)
                problem = _problem(reader, wanted, forged, count)
                if problem:
                    count.failed += 1
                    print(f"{reader.name}, file {number}: {problem}", file=sys.stderr)
                    if config.keep:
                        name = f"{reader.name.replace(' ', '-')}-{number}{reader.path.suffix}"
                        (config.keep / name).write_bytes(damaged)
        reader.path.write_bytes(valid)
    return counts


def _problem(reader: Reader, wanted: Any, forged: bool, count: Count) -> str:
    """What a reader did wrong with the damaged file; nothing if it did well."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        found = reader.read()
    except UserError:
        count.refused += 1
        return ""
    except BaseException:
        return traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    count.read += 1
    if reader.checked and not forged and found != wanted:
        return "it was read, with other content than the valid file has"
    return ""


def damage(content: bytes, draws: random.Random) -> tuple[bytes, bool]:
    """A damaged file.

    Args:
        content: A valid one.
        draws: Decides what is done to it.

    Returns:
        The damaged file, and whether its checksum was made to fit or removed.
    """
    kind = draws.randrange(8)
    if kind < 4:
        damaged = content
        for _ in range(draws.choice((1, 1, 1, 4))):
            damaged = _bytes_damaged(damaged, draws)
        return damaged, False
    header = _header(content)
    if header is None and b"\0" in content:  # an archive
        return _bytes_damaged(content, draws), False
    if header is None:
        return _text_damaged(content, draws), True
    description, rest = header
    metadata = json.loads(description["__metadata__"][files.METADATA_KEY])
    if kind == 4:
        raw = json.dumps(_value_changed(description, draws)).encode()
        return _joined(raw, rest), True
    if kind == 5:
        changed = dict(_value_changed(metadata, draws))
        changed.pop(files.CHECKSUM, None)
    elif kind == 6:
        changed = dict(_value_changed(metadata, draws))
        found = changed.pop(files.CHECKSUM, None)
        if isinstance(found, dict):
            changed[files.CHECKSUM] = {**found, "metadata": files.json_checksum(changed)}
    else:
        text = json.dumps(metadata)
        place = text.rindex(":") + 1
        text = text[:place] + draws.choice(TEXTS) + text[place:]
        description["__metadata__"] = {files.METADATA_KEY: text}
        return _joined(json.dumps(description).encode(), rest), True
    description["__metadata__"] = {files.METADATA_KEY: json.dumps(changed)}
    return _joined(json.dumps(description).encode(), rest), True


def _bytes_damaged(content: bytes, draws: random.Random) -> bytes:
    """A file with some bytes changed, lost, doubled or moved; oftener near its beginning."""
    size = len(content)
    place = int(size * draws.random() ** draws.choice((1, 3)))
    length = draws.choice((1, 1, 2, 8, 100, 1000))
    part = content[place : place + length]
    kind = draws.randrange(7)
    if kind == 0 and size:
        place = min(place, size - 1)
        flipped = content[place] ^ (1 << draws.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    if kind == 3:
        return content[:place] + part + content[place:]
    if kind == 4:
        other = draws.randrange(size + 1)
        return content[:other] + part + content[other + len(part) :]
    if kind == 5:
        return content[:place] + draws.randbytes(length) + content[place + length :]
    claimed = draws.choice((0, 1, 2**31, 2**63, 2**64 - 1, size, size - 8, draws.randrange(2**24)))
    return max(0, claimed).to_bytes(8, "little") + content[8:]


def _text_damaged(content: bytes, draws: random.Random) -> bytes:
    """A text with one of its numbers, words or lines exchanged."""
    lines = content.decode().splitlines(keepends=True)
    number = draws.randrange(len(lines))
    name, sign, _ = lines[number].partition("=" if "=" in lines[number] else ":")
    value = draws.choice((*map(repr, VALUES), *map(json.dumps, VALUES), *TEXTS))
    comma = "," if sign == ":" else ""
    lines[number] = f"{name}{sign} {value}{comma}\n"
    return "".join(lines).encode(errors="surrogatepass")


def _header(content: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Header and data of a file of tensors; None for a text."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content):
        return None
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _value_changed(content: Mapping[str, Any], draws: random.Random) -> Any:
    """A description with a value somewhere in it exchanged, lost or doubled."""
    copy = json.loads(json.dumps(content))
    place, key = draws.choice([*_places(copy)])
    kind = draws.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.insert(key, place[key])
    elif kind == 1:
        place[f"{key}x"] = place[key]
    elif kind == 2 and isinstance(place[key], int | float):
        place[key] = place[key] * draws.choice((-1, 0, 2, 10**6, 10**12)) + draws.choice((0, 1))
    else:
        place[key] = draws.choice(VALUES)
    return copy


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every value inside of a description, by what holds it and its key or index there."""
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


@contextmanager
def _limits() -> Iterator[None]:
    """Bounds memory and makes the timer raise."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {SECONDS:g} s of computing")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, ring)
    size = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGVTALRM, handler)


# --- the readers


def readers(folder: Path) -> list[Reader]:
    """Every reader, with a valid file of a tiny run.

    Args:
        folder: Where the files go.
    """
    run = Run(folder, write_data(folder / "images.npz"))
    run.do("expert")
    run.do("distill")
    config = run.distillation
    problem = prepare(config)
    checkpoint.save(config.checkpoint_path, problem.initial_state(), problem.identity)
    store = Store.open(run.store)
    expert = store.expert_path(1)
    partial = _partial_store(folder / "partial", store)
    recipe = folder / "recipe.toml"
    recipe.write_bytes((FOLDER / "datm/cifar10/ipc10.toml").read_bytes())
    find_recipe(str(recipe))
    return [
        Reader("artifact", config.out, lambda: _artifact(config.out)),
        Reader("store, manifest", run.store / "store.json", lambda: _store(run.store)),
        Reader("store, expert", expert, lambda: _store(run.store)),
        Reader(
            "checkpoint of a distillation",
            config.checkpoint_path,
            lambda: _checkpoint(config.checkpoint_path, problem.identity),
        ),
        Reader(
            "checkpoint of an expert",
            partial.checkpoint_path(0),
            lambda: _expert_checkpoint(partial),
        ),
        Reader("recipe", recipe, lambda: load_recipe(recipe, "it").as_dict(), checked=False),
        Reader("images", folder / "images.npz", lambda: _images(run.data), checked=False),
    ]


def _partial_store(path: Path, store: Store) -> Store:
    """A store whose expert 0 has a checkpoint."""
    described = {k: v for k, v in store.manifest.items() if k not in ("format", "version")}
    partial = Store.create(path, described)
    health = {name: [1.0] for name in ("train_loss", "accuracy", "displacement")}
    description = {"format": "trajmatch expert checkpoint", "format_version": 1}
    about = {"store": partial.identity, "expert": 0, "place": [1, 0], "health": health}
    theta = store.snapshot(0, 1)
    files.save_tensors(
        partial.checkpoint_path(0), {"theta": theta, "last": theta}, {**description, **about}
    )
    return partial


def _artifact(path: Path) -> Any:
    return artifact.load(path).fingerprint


def _store(path: Path) -> Any:
    store = Store.open(path, complete=False)
    content: list[Any] = [store.manifest, store.zca is None, store.missing()[:10]]
    for expert in range(min(3, store.num_experts)):
        if store.expert_path(expert).exists():
            content.append(store.metrics(expert))
            for epoch in store.snapshots_kept[:8]:
                content.append(_digest(store.snapshot(expert, epoch)))
                buffers = store.buffers(expert, epoch)
                content.append(None if buffers is None else _digest(buffers))
    return content


def _images(uri: str) -> Any:
    dataset = load_dataset(uri)
    return [dataset.fingerprint, *dataset.class_names]


def _checkpoint(path: Path, identity: dict[str, Any]) -> Any:
    state = checkpoint.load(path, identity, "cpu")
    tensors = (state.synthetic.images, state.synthetic.labels, state.buffer, state.order.order)
    return [*map(_digest, tensors), state.iteration, state.step_size, state.scores]


def _expert_checkpoint(store: Store) -> Any:
    place = Checkpoints(store, 0).place(0)
    tensors, description = files.load_tensors(store.checkpoint_path(0))
    health = description["health"]
    return [place, health, {name: _digest(each) for name, each in tensors.items()}]


def _digest(tensor: torch.Tensor) -> str:
    return files.json_checksum({"values": tensor.flatten().double().nan_to_num().tolist()})


def main() -> int:
    """Runs the program; returns its exit status."""
    config = parse(FuzzConfig, sys.argv[1:], "benchmarks/fuzz_readers.py")
    torch.set_num_threads(1)
    if config.keep:
        config.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = readers(Path(folder))
        began = time.perf_counter()
        counts = fuzz(config, made)
    for name, count in counts.items():
        print(f"{name}: {count.refused} refused, {count.read} read, {count.failed} failed")
    print(f"{len(counts)} readers, {config.files} files each, {time.perf_counter() - began:.0f} s")
    return 1 if any(count.failed for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
