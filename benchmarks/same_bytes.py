"""Compare the results of two checkouts bit by bit: experts and distilled sets of small runs.

    python benchmarks/same_bytes.py OTHER [NAME ...]

OTHER is a built checkout of the project, for example `git worktree add OTHER COMMIT`, then
`python setup.py build_ext --inplace` in it. Tensors are compared, not descriptions. The exit status
is 1 if a tensor differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

HERE = Path(__file__).resolve().parents[1]

_EXPERT = "--num-experts 2 --epochs 3 --batch-size 128 --seed 3"
_DISTILL = "--iterations 4 --student-steps 5 --expert-epochs 1 --max-start-epoch 2 --seed 5"

#: Flags of `expert` and of `distill`, by name.
CASES = {
    "mtt": ("", "--ipc 1 --lr-img 100"),
    "dsa-off": ("--dsa none", "--ipc 1 --dsa none --lr-img 100"),
    "zca": ("--zca", "--ipc 2 --lr-img 10"),
    "batches-that-divide": ("", "--ipc 2 --batch-syn 10 --lr-img 100"),
    "momentum-and-matches": ("", "--ipc 1 --student-momentum 0.5 --matches 2 --lr-img 100"),
    "soft-labels": ("", "--ipc 2 --labels soft --lr-label 2 --lr-img 10"),
    "group-norm": ("--norm group", "--ipc 1 --lr-img 100"),
    "batch-norm": ("--norm batch", "--ipc 1 --lr-img 100"),
    "leaky-max": ("--activation leaky_relu --pooling max", "--ipc 1 --lr-img 100"),
    "lenet": ("--network lenet", "--ipc 1 --lr-img 100 --lr-init 1e-3"),
    "resnet18": ("--network resnet18:width=4 --epochs 1 --num-experts 1", None),
    "momentum-experts": ("--momentum 0.9 --weight-decay 5e-4", "--ipc 1 --lr-img 100"),
    "adam-experts": ("--optimiser adam --lr 1e-3", None),
    "gsam-experts": ("--rho 0.01", None),
}


def main() -> int:
    """Run the cases with both checkouts; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("names", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    worst = 0
    for name in arguments.names:
        ours, others = (results(checkout, name) for checkout in (HERE, arguments.other.resolve()))
        different = sorted(
            key for key in ours.keys() | others.keys() if ours.get(key) != others.get(key)
        )
        print(
            f"{name}: {f'different: {different}' if different else f'{len(ours)} tensors equal'}",
            flush=True,
        )
        worst = max(worst, bool(different))
    return worst


def results(checkout: Path, name: str) -> dict[str, str]:
    """Run a case with a checkout and return a digest of each tensor that it wrote."""
    expert, distill = CASES[name]
    if "--network" not in expert:
        expert += " --width 8"
    with tempfile.TemporaryDirectory() as folder:
        run(checkout, folder, f"expert --out experts {_EXPERT} {expert}")
        if distill is not None:
            run(
                checkout,
                folder,
                f"distill --experts experts --out d.safetensors {_DISTILL} {distill}",
            )
        return {
            f"{path.name}:{key}": digest
            for path in sorted(Path(folder).rglob("*.safetensors"))
            if not path.name.startswith(".")
            for key, digest in digests(path).items()
        }


def run(checkout: Path, folder: str, line: str) -> None:
    """Run one command of a checkout in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trajmatch", *line.split(), "--quiet"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: trajmatch {line}\n{done.stderr[-2000:]}")


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every tensor of a file."""
    with safe_open(path, framework="np") as file:
        return {
            key: hashlib.sha256(file.get_tensor(key).tobytes()).hexdigest()[:16]
            for key in file.keys()  # noqa: SIM118  safe_open is no mapping
        }


if __name__ == "__main__":
    sys.exit(main())
