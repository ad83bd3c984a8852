"""Every reader refuses damaged files by the project's own error, or reads them as they were.

Files are made from valid ones: bytes flipped, lost, doubled or exchanged, and values of the
description exchanged for others, with the old checksum, with a right one and with none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kill_runs import write_data

from trajmatch import artifact, files
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig, checkpoint, distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.checkpoint import Checkpoints
from trajmatch.recipes.recipe import FOLDER, load_recipe

pytestmark = pytest.mark.harness

#: Memory that reading a damaged file may take beyond that of the valid one.
MEMORY = 64 * 2**20

READERS = (
    "artifact",
    "manifest",
    "expert",
    "checkpoint",
    "expert's checkpoint",
    "recipe",
    "images",
)


class Reader(NamedTuple):
    """A valid file, which is damaged in place, and the content that a reader finds in it."""

    path: Path
    read: Callable[[], Any]
    checked: bool = True  # a changed file is refused, since it has a checksum


class Stopped(Exception):
    """A run that ends in the middle, at a checkpoint."""


class Stop:
    def update(self, done: int, **numbers: float) -> None:
        if done == 4:
            raise Stopped


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """Every reader, with a valid file of a tiny run."""
    folder = tmp_path_factory.mktemp("files")
    images = folder / "images.npz"
    uri = write_data(images)

    def experts(name: str, **choices: Any) -> ExpertConfig:
        return ExpertConfig(
            out=folder / name,
            data=uri,
            num_experts=2,
            epochs=6,
            batch_size=8,
            width=4,
            depth=1,
            workers=1,
            **choices,
        )

    whole, partial = experts("experts"), experts("partial", checkpoint_seconds=0)
    train_experts(whole)
    with pytest.raises(Stopped):
        train_experts(partial, Stop())
    config = DistillConfig(
        experts=whole.out,
        out=folder / "distilled.safetensors",
        iterations=3,
        student_steps=2,
        expert_epochs=1,
        max_start_epoch=2,
        labels="soft",
        ema=0.9,
    )
    distill(config)
    stopped = DistillConfig(**{**vars(config), "out": folder / "stopped", "checkpoint_every": 2})
    with pytest.raises(Stopped):
        distill(DistillConfig(**{**vars(stopped), "iterations": 9}), Stop())
    problem, store = prepare(stopped), Store.open(partial.out, complete=False)
    recipe = folder / "recipe.toml"
    recipe.write_bytes((FOLDER / "datm/cifar10/ipc10.toml").read_bytes())
    return {
        "artifact": Reader(config.out, lambda: artifact.load(config.out).fingerprint),
        "manifest": Reader(whole.out / "store.json", lambda: content_of(whole.out)),
        "expert": Reader(Store.open(whole.out).expert_path(1), lambda: content_of(whole.out)),
        "checkpoint": Reader(
            stopped.checkpoint_path,
            lambda: [
                checkpoint.load(stopped.checkpoint_path, problem).iteration,
                tensors_of(stopped.checkpoint_path),
            ],
        ),
        "expert's checkpoint": Reader(
            store.checkpoint_path(0),
            lambda: [Checkpoints(store, 0).place(0), tensors_of(store.checkpoint_path(0))],
        ),
        "recipe": Reader(recipe, lambda: load_recipe(recipe, "it"), checked=False),
        "images": Reader(images, lambda: load_dataset(uri).fingerprint, checked=False),
    }


def content_of(path: Path) -> list[Any]:
    store = Store.open(path)
    experts = range(store.num_experts)
    rows = [store.snapshot(expert, epoch) for expert in experts for epoch in store.snapshots_kept]
    return [
        store.manifest,
        [store.metrics(expert) for expert in experts],
        torch.stack(rows).tolist(),
    ]


def tensors_of(path: Path) -> dict[str, list[int]]:
    tensors, _ = files.load_tensors(path)
    return {name: each.flatten().view(torch.uint8).tolist() for name, each in tensors.items()}


#: Values in place of another in a description, as JSON.
VALUES = [
    *map(json.dumps, (None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5, "", "../../etc", "\0")),
    *map(json.dumps, ("a" * 5000, [], {}, [[]], [0] * 1000, {"name": "convnet"})),
    *("[" * 100_000, "1" * 5000, "1e999", "NaN", '"\\ud800"', "9" * 400, "[]" + " " * 9000),
]


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, lost, doubled or moved at one to four places, oftener near the beginning."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 4)))):
        size = len(content)
        place, other = (draw(st.integers(0, 200) | st.integers(0, size)) for _ in range(2))
        end = place + draw(st.sampled_from((1, 1, 2, 8, 100, 1000)))
        part = content[place:end]
        count = draw(st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1, size, max(0, size - 8))))
        content = draw(
            st.sampled_from(
                (
                    content[:place] + bytes(each ^ 16 for each in part[:1]) + content[place + 1 :],
                    content[:place],
                    content[:place] + content[end:],
                    content[:place] + part + content[place:],
                    content[:other] + part + content[other + len(part) :],
                    content[:place] + draw(st.binary(max_size=99)) + content[end:],
                    count.to_bytes(8, "little") + content[8:],
                )
            )
        )
    return content


@st.composite
def exchanged(draw: st.DrawFn, text: str) -> str:
    """JSON or TOML with one of its values exchanged for another, lost or doubled."""
    starts = [found.end() for found in re.finditer(r"[:=\[,] *", text)]
    place = draw(st.sampled_from(starts))
    end = next((n for n in range(place, len(text)) if text[n] in ",}]\n"), len(text))
    part = draw(st.sampled_from([*VALUES, "", f"{text[place:end]},{text[place:end]}"]))
    return text[:place] + part + text[end:]


@st.composite
def described_otherwise(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of tensors with another description, whose checksum fits or is gone."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = header["__metadata__"][files.METADATA_KEY]
    if draw(st.booleans()):
        metadata = json.loads(text)
        checksum = metadata.pop(files.CHECKSUM, None)
        text = draw(exchanged(json.dumps(metadata)))
        with contextlib.suppress(ValueError, RecursionError):  # it is no JSON any more
            metadata = json.loads(text, parse_constant=float)
            if checksum and isinstance(metadata, dict) and draw(st.booleans()):
                checksum = {**checksum, "metadata": files.json_checksum(metadata)}
                text = json.dumps({**metadata, files.CHECKSUM: checksum})
        header["__metadata__"][files.METADATA_KEY] = text
        raw = json.dumps(header)
    else:
        raw = draw(exchanged(json.dumps(header)))
    encoded = raw.encode(errors="surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limit the memory of this process to what it has and a little more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "examples", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_damage_is_refused(readers: dict[str, Reader], name: str, examples: int) -> None:
    path, read, checked = readers[name]
    valid, wanted = path.read_bytes(), read()
    described = path.suffix == ".safetensors"
    text = path.suffix in (".json", ".toml")

    @settings(max_examples=examples, deadline=10_000, suppress_health_check=[*HealthCheck])
    @given(data=st.data())
    def reads(data: st.DataObject) -> None:
        forged = (described or text) and data.draw(st.booleans())
        if not forged:
            damaged = data.draw(edited(valid))
        elif described:
            damaged = data.draw(described_otherwise(valid))
        else:
            damaged = data.draw(exchanged(valid.decode())).encode(errors="surrogatepass")
        path.write_bytes(damaged)
        with limited():
            try:
                found = read()
            except UserError:
                return
        assert forged or not checked or found == wanted, "read, with other content"

    try:
        reads()
    finally:
        path.write_bytes(valid)
