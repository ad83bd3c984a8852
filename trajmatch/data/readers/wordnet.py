"""ImageNet subsets and Tiny ImageNet: JPEG files in folders named after WordNet ids."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Picture, load_pictures
from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.data.options import ImageOptions, choose_classes
from trajmatch.data.reading import visible
from trajmatch.errors import UserError

_SUBSETS = KNOWN_SETS["imagenet"].subsets
_TINY_FOLDER = "tiny-imagenet-200"
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ImageNetOptions(ImageOptions):
    """Options of ImageNet; ``subset`` names a published list of classes."""

    subset: Literal["nette", "woof", "fruit", "meow", "squawk", "yellow"] | None = None


def load_imagenet(address: Address, options: ImageNetOptions) -> Dataset:
    """Load ``root/train/WNID/*`` and ``root/val/WNID/*`` at 128 x 128 pixels or ``options.size``.

    ``root`` is the path of the address or its subfolder ``imagenet``. Classes are chosen by WordNet
    id or, in a subset, also by name. The classes of a subset are in MTT's order. Mean and std are
    ImageNet's constants.
    """
    if (root := _imagenet_in(address.place)) is None:
        raise UserError(
            f"{address.place} should hold train/WNID/IMAGE and val/WNID/IMAGE, with WordNet ids "
            "such as n01440764 as names of folders; sort the validation images into such folders, "
            f"too, and choose classes by ?subset=NAME ({', '.join(_SUBSETS)}) or ?classes=WNID,WNID"
        )
    every = {identifier: identifier for identifier in _wordnet_folders(root / "train")}
    # WordNet id to name; outside of the subsets, the id is also the name.
    named = _SUBSETS[options.subset] if options.subset else every
    chosen = _choose(str(root), named, options.classes)
    parts = [
        [
            Picture(label, path)
            for label, identifier in enumerate(chosen)
            for path in visible(root / part / identifier)
        ]
        for part in ("train", "val")
    ]
    names, known = list(chosen.values()), KNOWN_SETS["imagenet"]
    return load_pictures(str(root), "imagenet", parts, names, options, known=known)


def load_tiny(address: Address, options: ImageOptions) -> Dataset:
    """Load the unpacked Tiny ImageNet archive at 64 x 64 pixels or ``options.size``.

    ``wnids.txt`` lists the classes and ``words.txt`` their names; ``val/val_annotations.txt`` has
    the labels of ``val/images/*``. The validation images are the test set, as in the papers,
    because the official test images have no labels. Classes are sorted by WordNet id and named by
    their first synonym. Mean and std are ImageNet's constants.
    """
    if (root := _tiny_in(address.place)) is None:
        raise UserError(
            f"{address.place} holds no wnids.txt, neither directly nor in {_TINY_FOLDER}; unpack "
            "the archive of Tiny ImageNet there"
        )
    identifiers = sorted((root / "wnids.txt").read_text("utf-8", "replace").split())
    named = _names((root / "words.txt").read_text("utf-8", "replace"), identifiers)
    chosen = _choose(str(root), named, options.classes)
    labels = {identifier: label for label, identifier in enumerate(chosen)}
    train = [
        Picture(label, path)
        for identifier, label in labels.items()
        for path in visible(root / "train" / identifier / "images")
    ]
    test = []
    annotations = root / "val" / "val_annotations.txt"
    for line in annotations.read_text("utf-8", "replace").splitlines():
        # A line is FILE, WNID, bounding box. The added "" covers a line without tabs.
        file, identifier, *_ = [*line.split("\t"), ""]
        if identifier not in named:
            raise UserError(
                f"{annotations} is damaged: {line[:60]!r} names no class of wnids.txt; unpack the "
                "archive again"
            )
        if identifier in labels:
            test.append(Picture(labels[identifier], root / "val" / "images" / file))
    names, known = list(chosen.values()), KNOWN_SETS["tiny-imagenet"]
    return load_pictures(str(root), "tiny-imagenet", [train, test], names, options, known=known)


def _imagenet_in(root: Path) -> Path | None:
    return next((f for f in (root / "imagenet", root) if _wordnet_folders(f / "train")), None)


def _tiny_in(root: Path) -> Path | None:
    return next((f for f in (root / _TINY_FOLDER, root) if (f / "wnids.txt").is_file()), None)


def _wordnet_folders(part: Path) -> list[str]:
    if not part.is_dir():
        return []
    return sorted(entry.name for entry in part.iterdir() if _WORDNET_ID.fullmatch(entry.name))


def _names(words: str, identifiers: Sequence[str]) -> dict[str, str]:
    """Return the first synonym of each class; append the id if two classes share a synonym."""
    synonyms = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    first = {i: synonyms.get(i, i).partition(",")[0].strip() for i in identifiers}
    often = Counter(first.values())
    return {i: name if often[name] == 1 else f"{name} ({i})" for i, name in first.items()}


def _choose(what: str, named: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """Return the wanted classes as a mapping from WordNet id to name, in label order."""
    identifiers = list(named)
    chosen = choose_classes(what, list(named.values()), wanted, identifiers)
    return {identifiers[index]: named[identifiers[index]] for index in chosen}


SOURCES = {
    "imagenet": Source("ROOT", load_imagenet, lambda address: bool(_imagenet_in(address.place))),
    "tiny-imagenet": Source("ROOT", load_tiny, lambda address: bool(_tiny_in(address.place))),
}
