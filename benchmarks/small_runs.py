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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from builds import check_origin

EXPERT = "--data npz:data.npz --num-experts 2 --epochs 4 --batch-size 32"
CONVNET = "--width 8 --depth 2"
DISTILL = "--iterations 6 --student-steps 5 --expert-epochs 2 --max-start-epoch 3 --snapshots 0"
ONE_START = "--ipc 1 --iterations 2 --expert-epochs 1 --max-start-epoch 1"
EVALUATIONS = "--eval-every 2 --eval-seeds 1 --eval-epochs 3"

#: Flags of `trajmatch expert`, by the name of the store.
STORES = {
    "plain": "",
    "gsam": "--rho 0.01 --alpha 0.3",
    "smooth": "--lr 0.003 --momentum 0.9 --weight-decay 1e-3 --lr-decay 0.6 --loss-scale rising "
    "--penalty 2",
    "penalty": "--penalty 2 --penalty-norm image",
    "adam": "--optimiser adam --lr 1e-3 --dtype bfloat16 --keep 0-3",
    "zca": "--zca --holdout 0.2",
    "no-dsa": "--dsa none",
    "batch": "--norm batch",
    "leaky": "--norm group --activation leaky_relu --pooling max",
    "resnet": "--network resnet18:width=2 --num-experts 1 --epochs 2",
    "stopped": "--epochs 40",
}

#: Store and flags of `trajmatch distill`, by the name of the case.
DISTILLED = {
    "mtt": ("plain", "--ipc 1"),
    "batches": ("plain", "--ipc 2 --batch-syn 8"),
    "matches": ("plain", "--ipc 1 --matches 2 --student-momentum 0.5 --tape-mb 0"),
    "micro-batches": ("plain", "--ipc 2 --micro-batch 7 --precise"),
    "tesla": ("plain", "--ipc 1 --gradient tesla --lr-param raw --lr-lr 1e-4"),
    "ftd": ("gsam", "--ipc 1 --ema 0.9"),
    "datm": (
        "gsam",
        "--ipc 2 --init correct --labels soft --lr-label 2 --momentum-label 0.5 --skip-above 0.89 "
        "--first-max-start-epoch 1 --growth-iterations 4",
    ),
    "labels-first": ("plain", "--ipc 2 --labels soft --label-experts first --lr-label 0"),
    "ast": (
        "smooth",
        "--ipc 2 --init representative --student-momentum 0.9 --terms final intermediate "
        "--balance --perturb 1",
    ),
    "rising": ("penalty", "--ipc 1 --init noise --terms final intermediate-rising"),
    "together": (
        "smooth",
        "--ipc 2 --init representative --init-clusters 1 --labels soft --matches 2 --batch-syn 10 "
        "--micro-batch 6 --ema 0.5 --perturb 0.5 --balance --terms intermediate final "
        "--student-momentum 0.9",
    ),
    "adam": ("adam", "--ipc 1 --max-start-epoch 2"),
    "holdout": ("zca", f"--ipc 2 --lr-img 10 --select holdout {EVALUATIONS}"),
    "test-max": ("plain", f"--ipc 1 --ema 0.9 --select test-max --eval-protocol ast {EVALUATIONS}"),
    "init-from": ("plain", "--ipc 1 --init-from mtt.safetensors"),
    "no-dsa": ("no-dsa", "--ipc 1"),
    "batch-norm": ("batch", "--ipc 1 --lr-img 10"),
    "leaky-max": ("leaky", "--ipc 1"),
    "autograd": ("resnet", f"{ONE_START} --lr-img 1e-4 --lr-lr 1e-12"),
    "refused": ("resnet", ONE_START),
    "stopped": ("stopped", "--ipc 2 --labels soft --iterations 60 --checkpoint-every 5"),
}

#: Flags of `trajmatch eval` for the result of the case "mtt", by the name of the case.
SCORES = {
    "eval-baselines": "--k-center --k-center-store plain --whole-real",
    "eval-datm": "--protocol datm --no-random-baseline",
    "eval-ast": "--protocol ast --no-random-baseline --network mlp convnet",
}

#: A run of all stages; of the experts' five epochs two are read.
RECIPE = """
title = "Small"
[expert]
num_experts = 2
epochs = 5
batch_size = 32
width = 8
depth = 2
[distill]
ipc = 1
iterations = 4
student_steps = 5
expert_epochs = 1
max_start_epoch = 2
[evaluate]
epochs = 3
seeds = 2
"""

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
        Path("small.toml").write_text(RECIPE)
        trajmatch("run --recipe ./small.toml --data npz:data.npz --out run --workers 1 --quiet")
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
        network = "" if "--network" in flags else CONVNET
        line = f"expert --out {store} {EXPERT} {network} {flags} --workers 1 --quiet"
        trajmatch(line, stop_at=f"{store}/*.safetensors" if stops else None)
    if not Path(f"{case}.safetensors").exists():
        line = f"distill --experts {store} --out {case}.safetensors {DISTILL} {settings} --quiet"
        trajmatch(line, stop_at=f"{case}.checkpoint*" if stops else None)


def trajmatch(line: str, stop_at: str | None = None) -> None:
    """Run a command.

    Args:
        line: Its arguments.
        stop_at: Pattern of a file; when there is one, the command gets SIGTERM, and goes on with
            ``--resume``.
    """
    from trajmatch.cli.main import main

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
        line = f"eval mtt.safetensors --data npz:data.npz --seeds 2 --epochs 3 --out {folder}/out"
        trajmatch(f"{line} {flags} --quiet")
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
