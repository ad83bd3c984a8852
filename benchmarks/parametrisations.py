"""The parametrisations of the images at equal stored values: the table and picture of the docs.

    trajmatch expert --data fashion-mnist-mini --out experts --num-experts 3 --epochs 8 --width 16
    python benchmarks/parametrisations.py experts --out sets

distils a set with each (those that are in the folder already are read) at one image per class,
evaluates it, and fills in docs/parametrisations.md and docs/parametrisations.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from doc_pages import fill, table
from torch import Tensor
from torch.nn.functional import pad

from trajmatch import files, pictures
from trajmatch.artifact import Artifact
from trajmatch.distill import DistillConfig, distill
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.images import find_parametrisation
from trajmatch.images.palette import Palette

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parametrisations.md"

SPECS = (
    "pixels",
    "flip",
    "upsample",
    "frequency:coefficients=196",
    "implicit",
    "palette:colours=4",
)
HEAD = ("`--images`", "images per class", "stored values", "bytes of the images", "accuracy, %")


def stored_tiles(distilled: Artifact) -> Tensor:
    """Return the stored form of each image of a set as a picture. ``[n, 1, H, W]``, from 0 to 1."""
    kind, parameters = (
        (distilled.parametrisation or "pixels").partition(":")[0],
        distilled.parameters,
    )
    height, width = distilled.images.shape[2:]
    if kind == "pixels":
        return _shade(distilled.images)
    if kind == "flip":
        return _shade(parameters["images"])
    if kind == "upsample":
        small = parameters["small_images"]
        return _shade(small.repeat_interleave(height // small.shape[2], 2).repeat_interleave(2, 3))
    if kind == "frequency":
        kept, positions = parameters["coefficients"].flatten(1), parameters["positions"].long()
        rows = positions.repeat_interleave(len(kept) // len(positions), 0)
        spectrum = torch.zeros(len(kept), height * width).scatter(1, rows, kept.abs().log1p())
        return _shade(spectrum.reshape(-1, 1, height, width))
    if kind == "palette":
        part = find_parametrisation(distilled.parametrisation)
        assert isinstance(part, Palette)
        indices = part.unpacked(parameters["indices"], height * width)
        return _shade(indices.float().reshape(-1, 1, height, width))
    numbers = torch.cat([each.flatten(1) for each in parameters.values()], dim=1)
    side = int(numbers.shape[1] ** 0.5 - 1e-9) + 1
    square = pad(numbers, (0, side**2 - numbers.shape[1])).reshape(-1, 1, side, side)
    large = square.repeat_interleave(height // side, 2).repeat_interleave(width // side, 3)
    return pad(_shade(large), (0, width - large.shape[3], 0, height - large.shape[2]), value=1.0)


def picture(sets: dict[str, Artifact], label: int) -> bytes:
    """Draw the stored form of a class for each set, and below it the images, as a PNG file."""
    rows, names = [], []
    for spec, distilled in sets.items():
        shown = pictures.to_pixels(distilled.preprocessing.invert(distilled.images), "sigma")
        stored = (stored_tiles(distilled) * 255).round().byte()
        classes = distilled.num_classes
        rows += [[*each.unflatten(0, (classes, -1))[label]] for each in (stored, shown)]
        names += [f"{spec.partition(':')[0]}: stored", "shown"]
    return pictures.encode(pictures.table(rows, names, scale=2))


def _shade(numbers: Tensor) -> Tensor:
    """Bring numbers, but for the largest of all, to 0 to 1."""
    low, high = numbers.quantile(0.01), numbers.quantile(0.99)
    return ((numbers - low) / (high - low)).clamp(0, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experts", type=Path, help="store of experts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--iterations", type=int, default=200, help="outer iterations")
    parser.add_argument("--seeds", type=int, default=3, help="networks that evaluate a set")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of each")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to fill in")
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    sets, rows = {}, []
    for spec in SPECS:
        file = asked.out / f"{spec.partition(':')[0]}.safetensors"
        config = DistillConfig(
            experts=asked.experts,
            out=file,
            images=spec,
            iterations=asked.iterations,
            max_start_epoch=4,
            resume=True,
        )
        made = sets[spec] = distill(config)
        protocol = EvalConfig(
            file=file, seeds=asked.seeds, epochs=asked.epochs, random_baseline=False
        )
        score = evaluate_artifact(protocol)["distilled"]
        size = made.stored_bytes - made.labels.nbytes
        per_class = len(made.images) // made.num_classes
        accuracy = f"{score['mean']:.1f} ± {score['std']:.1f}"
        rows.append((f"`{spec}`", str(per_class), f"{made.stored_values:,}", f"{size:,}", accuracy))
        print(*rows[-1], sep="  ", flush=True)
    fill(asked.page, "table", table(HEAD, rows))
    files.write_bytes(asked.page.with_suffix(".png"), picture(sets, label=9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
