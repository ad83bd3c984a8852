"""Small runs that use every part of every method between them, and digests of what they give.

    PYTHONPATH=CHECKOUT python benchmarks/small_runs.py CHECKOUT [CASE ...]

prints them as JSON. The flags stand in every commit that same_bytes.py compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from builds import check_origin

HERE = Path(__file__).resolve().parent

_TABLE = tomllib.loads((HERE / "small_runs.toml").read_text())
COMMON, STORES, DISTILLED, SCORES = (
    _TABLE[name] for name in ("common", "stores", "distilled", "scores")
)

CASES = (*DISTILLED, *SCORES, "run")

Digests = dict[str, str]


def main(checkout: str, *cases: str) -> None:
    """Make the runs in a temporary folder and print their digests."""
    import trajmatch

    check_origin(trajmatch, checkout)
    with contextlib.ExitStack() as stack:
        os.chdir(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        write_data()
        found = {}
        for case in cases or CASES:
            began = time.perf_counter()
            found[case] = digests(case)
            seconds = time.perf_counter() - began
            print(f"{checkout}: {case}, {seconds:.1f} s", file=sys.stderr, flush=True)
        os.chdir("/")
    print(json.dumps(found))


def write_data() -> None:
    """Write 320 images of ten classes, each with a bar at a place of its own, as data.npz."""
    import numpy as np

    draws = np.random.default_rng(0)
    labels = np.arange(320) % 10
    images = draws.integers(0, 160, (320, 16, 16, 3), dtype=np.uint8)
    images[np.arange(320), labels] += 90
    np.savez("data.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])


def digests(case: str) -> Digests:
    """Make a run and what it needs; return digests of what it gives."""
    if case in SCORES:
        distill("mtt")
        return scores(SCORES[case])
    if case == "run":
        trajmatch(f"run --recipe {HERE}/small_recipe.toml --out run {COMMON['run']}")
        return distilled("run/distilled.safetensors")
    if case == "init-from":
        distill("mtt")
    distill(case)
    return {**experts(DISTILLED[case][0]), **distilled(f"{case}.safetensors")}


def distill(case: str) -> None:
    """Distil a case and train the experts that it needs, unless that is done."""
    store, settings = DISTILLED[case]
    stops = case == "stopped"
    if not Path(store).exists():
        flags = STORES[store]
        network = "" if "--network" in flags else COMMON["convnet"]
        line = f"expert --out {store} {COMMON['expert']} {network} {flags} --workers 1"
        trajmatch(line, stop_at=f"{store}/*.safetensors" if stops else None)
    if not Path(f"{case}.safetensors").exists():
        line = f"distill --experts {store} --out {case}.safetensors {COMMON['distill']} {settings}"
        trajmatch(line, stop_at=f"{case}.checkpoint*" if stops else None)


def trajmatch(line: str, stop_at: str | None = None) -> None:
    """Run a command.

    Args:
        line: Its arguments, but for ``--quiet``.
        stop_at: Pattern of a file; when there is one, the command gets SIGTERM, and goes on with
            ``--resume``.
    """
    from trajmatch.cli.main import main

    line += " --quiet"
    if stop_at is not None:
        threading.Thread(target=stop, args=(stop_at,), daemon=True).start()
        status = main(line.split())
        if status != 128 + signal.SIGTERM:
            raise SystemExit(f"trajmatch {line} should be stopped, but ended with status {status}")
        line += " --resume"
    if status := main(line.split()):
        raise SystemExit(f"trajmatch {line} ended with status {status}")


def stop(pattern: str) -> None:
    """Send SIGTERM to this process as soon as there is a file."""
    while not [*Path().glob(pattern)]:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


def experts(store: str) -> Digests:
    """Return the digest of all tensors of a store."""
    from safetensors.torch import load_file

    tensors = [load_file(path) for path in sorted(Path(store).glob("[!.]*.safetensors"))]
    return {"experts": digest(each[name] for each in tensors for name in sorted(each))}


def distilled(path: str) -> Digests:
    """Return digests of a distilled set."""
    import trajmatch

    found = trajmatch.load(path)
    return {
        "images": digest([found.images]),
        "labels": digest([found.labels]),
        "step size": float(found.lr).hex(),
    }


def scores(flags: str) -> Digests:
    """Evaluate the result of the case "mtt"; return a digest of all accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        line = f"eval mtt.safetensors {COMMON['evaluate']} --out {folder}/out"
        trajmatch(f"{line} {flags}")
        record = json.loads(Path(f"{folder}/out/result.json").read_text())
    found = repr([*accuracies(record)])
    return {"scores": hashlib.sha256(found.encode()).hexdigest()[:12]}


def accuracies(record: Any) -> Iterator[float]:
    """Yield the accuracies of all networks in a record, in the order of its keys."""
    if isinstance(record, list):
        for each in record:
            yield from accuracies(each)
    elif isinstance(record, dict):
        for name in sorted(record):
            yield from record[name] if name == "accuracies" else accuracies(record[name])


def digest(tensors: Iterable[Any]) -> str:
    """Return the beginning of the SHA-256 of all bytes of tensors."""
    import torch

    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


if __name__ == "__main__":
    main(*sys.argv[1:])
