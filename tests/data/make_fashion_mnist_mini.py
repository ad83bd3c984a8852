"""Makes the sheets of images that the package ships, from the original files of Fashion-MNIST.

usage: python tests/data/make_fashion_mnist_mini.py ROOT [OUT]

ROOT holds the four original IDX files; OUT is where the sheets go, by default the folder of the
package they belong to. The same files give the same pixels; the bytes also depend on the release of
zlib. Put the printed SHA-256 sums into trajmatch/data/readers/shipped.py.
"""

import hashlib
import sys
from pathlib import Path

import torch
from PIL import Image

from trajmatch.data import load_dataset

PACKAGE = Path(__file__).parents[2] / "trajmatch" / "data" / "fashion_mnist_mini"
PER_CLASS = {"train": 1000, "test": 200}
COLUMNS = 200  # images in a row of the sheet


def first_of_each_class(labels, per_class):
    """Indices of the first images of each class, class by class, in the order of the set."""
    return torch.cat(
        [torch.nonzero(labels == label).flatten()[:per_class] for label in labels.unique()]
    )


def make_sheet(images, columns):
    """Images [N, 1, S, S] side by side, [N / columns * S, columns * S]."""
    side = images.shape[-1]
    rows = images.view(-1, columns, side, side)
    return rows.transpose(1, 2).reshape(-1, columns * side)


def main(root, out=PACKAGE):
    """Writes both sheets and prints their sums."""
    dataset = load_dataset(f"fashion-mnist:{root}")
    splits = {
        "train": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    for split, (images, labels) in splits.items():
        chosen = images[first_of_each_class(labels, PER_CLASS[split])]
        path = Path(out) / f"{split}.png"
        Image.fromarray(make_sheet(chosen, COLUMNS).numpy()).save(path, optimize=True)
        content = path.read_bytes()
        print(f"{path.name}: {len(content)} bytes, {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
