"""ImageNet's subsets and Tiny ImageNet: JPEG files in folders that are named after WordNet ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from trajmatch.data import decode
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Labelled
from trajmatch.data.imagenet_subsets import SUBSETS
from trajmatch.data.options import Options, choose_classes, nearest
from trajmatch.data.reading import check_folder, visible
from trajmatch.data.statistics import PUBLISHED
from trajmatch.errors import UserError

#: Side of the images that ImageNet's subsets are resized to, in pixels (MTT: 128).
IMAGENET_SIZE = 128
TINY_SIZE = 64

_TINY_FOLDER = "tiny-imagenet-200"
_WORDNET_ID = re.compile(r"n\d{8}")


def load_imagenet(root: Path, options: Options) -> Dataset:
    """Loads a part of ImageNet from ``root/train/WNID/*`` and ``root/val/WNID/*``.

    Args:
        root: The folder, or its parent when it is called ``imagenet``.
        options: ``subset`` (nette, woof, fruit, meow, squawk, yellow), ``classes`` (WordNet ids, or
            names within a subset) and ``size`` (128 if not given) count.

    Returns:
        The data set, ``imagenet``, RGB, with the statistics that are published for ImageNet. The
        classes of a subset are in the order in which MTT lists them.

    Raises:
        OSError: A folder cannot be read.
        UserError: The folders are not as described, a class is missing, or a file cannot be used.
    """
    if options.subset is not None and options.subset not in SUBSETS:
        raise UserError(
            f"ImageNet has no subset {options.subset!r}; {nearest(options.subset, list(SUBSETS))}"
        )
    check_folder(root)
    folder = _imagenet_in(root)
    if folder is None:
        raise UserError(
            f"{root} should hold train/WNID/IMAGE and val/WNID/IMAGE, with WordNet ids such as "
            "n01440764 as names of folders; sort the validation images into such folders, too, and "
            f"choose classes by ?subset=NAME ({', '.join(SUBSETS)}) or ?classes=WNID,WNID"
        )
    present = _wordnet_folders(folder / "train")
    if options.subset is None:
        named = {identifier: identifier for identifier in present}
    else:
        named = SUBSETS[options.subset]
    chosen = _choose(str(folder), named, options.classes)
    for split in ("train", "val"):
        lacking = sorted(set(chosen) - set(_wordnet_folders(folder / split)))
        if lacking:
            raise UserError(
                f"{folder / split} lacks {len(lacking)} of the {len(chosen)} classes wanted (the "
                f"first is {lacking[0]}, {chosen[lacking[0]]}); unpack them there"
            )
    splits = [
        [
            Labelled(path, label)
            for label, identifier in enumerate(chosen)
            for path in visible(folder / split / identifier)
        ]
        for split in ("train", "val")
    ]
    return _dataset("imagenet", folder, splits, list(chosen.values()), IMAGENET_SIZE, options)


def load_tiny(root: Path, options: Options) -> Dataset:
    """Loads Tiny ImageNet as its archive unpacks.

    ``wnids.txt`` (the classes), ``words.txt`` (their names), ``train/WNID/images/*`` and
    ``val/images/*`` with ``val/val_annotations.txt``; the test images have no labels, so the
    validation images are the test set, as in the papers.

    Args:
        root: The folder that the archive unpacked to, or its parent.
        options: ``classes`` (names or WordNet ids) and ``size`` (64 if not given) count.

    Returns:
        The data set, ``tiny-imagenet``, RGB, with the statistics that are published for ImageNet.
        Classes are in the order of their WordNet ids; the name of a class is the first of its
        synonyms.

    Raises:
        OSError: A file cannot be read.
        UserError: Files are missing or cannot be used.
    """
    check_folder(root)
    folder = _tiny_in(root)
    if folder is None:
        raise UserError(
            f"{root} holds no wnids.txt, neither directly nor in {_TINY_FOLDER}; unpack the "
            "archive of Tiny ImageNet there"
        )
    identifiers = sorted(_read(folder / "wnids.txt").split())
    named = _names(folder / "words.txt", identifiers)
    chosen = _choose(str(folder), named, options.classes)
    labels = {identifier: label for label, identifier in enumerate(chosen)}
    train = []
    for identifier, label in labels.items():
        images = folder / "train" / identifier / "images"
        if not images.is_dir():
            raise UserError(f"{images} is missing; unpack the whole archive again")
        train += [Labelled(path, label) for path in visible(images)]
    test = []
    annotations = folder / "val" / "val_annotations.txt"
    for line in _read(annotations).splitlines():
        file, _, rest = line.partition("\t")
        identifier = rest.partition("\t")[0]
        if identifier not in named:
            raise UserError(
                f"{annotations} is damaged: {line[:60]!r} names no class of wnids.txt; unpack the "
                "archive again"
            )
        if identifier in labels:
            test.append(Labelled(folder / "val" / "images" / file, labels[identifier]))
    names = list(chosen.values())
    return _dataset("tiny-imagenet", folder, [train, test], names, TINY_SIZE, options)


def imagenet_found_in(root: Path) -> bool:
    """Whether :func:`load_imagenet` would find ImageNet's folders.

    Args:
        root: Folder to look in.
    """
    return _imagenet_in(root) is not None


def tiny_found_in(root: Path) -> bool:
    """Whether :func:`load_tiny` would find Tiny ImageNet.

    Args:
        root: Folder to look in.
    """
    return _tiny_in(root) is not None


def _imagenet_in(root: Path) -> Path | None:
    folders = (root / "imagenet", root)
    return next((f for f in folders if _wordnet_folders(f / "train")), None)


def _tiny_in(root: Path) -> Path | None:
    folders = (root / _TINY_FOLDER, root)
    return next((f for f in folders if (f / "wnids.txt").is_file()), None)


def _wordnet_folders(split: Path) -> list[str]:
    if not split.is_dir():
        return []
    return sorted(entry.name for entry in split.iterdir() if _WORDNET_ID.fullmatch(entry.name))


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again")
    return path.read_text(encoding="utf-8", errors="replace")


def _names(path: Path, identifiers: Sequence[str]) -> dict[str, str]:
    """Name of each class: its first synonym, with the identifier where two have the same."""
    synonyms = dict(line.split("\t", 1) for line in _read(path).splitlines() if "\t" in line)
    first = {i: synonyms.get(i, i).partition(",")[0].strip() for i in identifiers}
    often = Counter(first.values())
    return {i: name if often[name] == 1 else f"{name} ({i})" for i, name in first.items()}


def _choose(what: str, named: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The classes wanted, identifier to name, from all."""
    identifiers = list(named)
    chosen = choose_classes(what, list(named.values()), wanted, identifiers)
    return {identifiers[index]: named[identifiers[index]] for index in chosen}


def _dataset(
    name: str,
    folder: Path,
    splits: list[list[Labelled]],
    names: list[str],
    size: int,
    options: Options,
) -> Dataset:
    size = options.size or size
    train, test = decode.decode(str(folder), splits, size, options, colour=True)
    return Dataset.from_arrays(name, *train, *test, class_names=names, statistics=PUBLISHED[name])
