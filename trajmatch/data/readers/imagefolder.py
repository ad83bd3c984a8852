"""Data sets from image files in one folder per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trajmatch.data import decode
from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset, check_class_names
from trajmatch.data.decode import Picture
from trajmatch.data.options import ImageOptions, PartOptions, choose_classes, composed
from trajmatch.data.parts import TEST, TRAIN, find_parts, say_left_out
from trajmatch.data.reading import files_below, visible
from trajmatch.errors import UserError, warn

_LAYOUT = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val), or CLASS/IMAGE"


@dataclass(frozen=True, kw_only=True)
class FolderOptions(ImageOptions, PartOptions):
    """Options of a folder of images."""


def load(address: Address, options: FolderOptions) -> Dataset:
    """Load ``root/train/CLASS`` and ``root/test/CLASS`` (or other usual names), or ``root/CLASS``.

    Without test images, a part of each class becomes the test set, with a warning if no
    ``?test=FRACTION`` is given. Classes are the subfolders in alphabetical order; the images of a
    class are all image files below its folder, in the order of torchvision's ``ImageFolder``.
    Hidden and system files are skipped; other files that are not images are skipped with a warning.
    The set is named after the folder.
    """
    root = address.place
    train, test = _parts(root, options)
    present = [entry.name for entry in visible(train) if entry.is_dir()]
    if len(present) == 1 and found_in(train / present[0]):
        raise UserError(f"{train} holds a single folder; did you mean {train / present[0]}?")
    if present:
        check_class_names(str(train), present)
    names = [present[index] for index in choose_classes(str(root), present, options.classes)]
    parts = [_pictures(train, present, names)]
    if test is not None:
        parts.append(_pictures(test, present, names))
    else:
        _warn_of_parts(root, parts[0])
    name = root.resolve().name
    return decode.load_pictures(str(root), name, parts, names, options, options.fraction)


def found_in(root: Path) -> bool:
    """Return True if the folder exists and has the layout of a data set."""
    if not root.is_dir():
        return False
    entries = visible(root)
    return any(entry.name.casefold() in TRAIN and entry.is_dir() for entry in entries) or (
        len(entries) > 1 and all(entry.is_dir() for entry in entries)
    )


def _parts(root: Path, options: FolderOptions) -> tuple[Path, Path | None]:
    """Return the folders of training and test images, with None for a missing test folder."""
    present = [entry.name for entry in visible(root)]
    folders = [name for name in present if (root / name).is_dir()]
    train, test = find_parts(str(root), folders, options)
    # A folder ``train`` among others may be a class (pictures of trains), so without a test folder
    # it counts as a part only if the user chose it or if it is alone.
    if train and (test or options.train or len(present) == 1):
        parts = [name for name in folders if name.casefold() in (*TRAIN, *TEST)]
        say_left_out(str(root), [name for name in parts if name not in (train, test)], options)
        return root / train, root / test if test else None
    # No parts: a folder with a part's name that directly holds images is a class.
    alone, named = train or test, options.test and options.fraction is None
    is_class = not alone or any(entry.is_file() for entry in visible(root / alone))
    if present and not named and is_class:
        return root, None
    raise UserError(
        f"{root} should hold {_LAYOUT}, but holds {', '.join(present) or 'nothing'}; sort the "
        "images into those folders, or add ?train=NAME&test=NAME to the data's address"
    )


def _warn_of_parts(root: Path, pictures: Sequence[Picture]) -> None:
    """Warn if all class folders hold the same subfolders, which are probably the real classes."""
    below: dict[int, set[str]] = {}
    for picture in pictures:
        below.setdefault(picture.label, set()).add(Path(str(picture)).parent.name)
    first = below.get(0, set())
    if len(first) > 1 and len(below) > 1 and all(each == first for each in below.values()):
        warn(
            f"{root}: all {len(below)} classes hold the folders {', '.join(sorted(first)[:5])}; if "
            "those folders are the real classes, choose the parts with ?train=NAME&test=NAME"
        )


def _pictures(part: Path, present: Sequence[str], names: Sequence[str]) -> list[Picture]:
    """Return the pictures of the classes ``names``; ``present`` lists all training classes."""
    known = {composed(name): name for name in present}
    pictures: list[Picture] = []
    others: list[Path] = []
    for entry in visible(part):
        if not entry.is_dir():
            raise UserError(
                f"{entry} is a file where a folder of images of one class was expected; move it "
                f"into the folder of its class or out of {part}, or choose another part with "
                "?test=NAME"
            )
        if (name := known.get(composed(entry.name))) is None:
            raise UserError(
                f"{entry} is not a class of the training set ("
                f"{', '.join(present) or 'it has none'}); training and test set must have class "
                "folders of the same names"
            )
        # A file with the suffix or header of an image is a picture, so that damage is an error.
        for file in files_below(entry) if name in names else ():
            if decode.is_image(file):
                pictures.append(Picture(names.index(name), file))
            else:
                others.append(file)
    if not pictures:
        raise UserError(f"{part} holds no images; put them into one folder per class there")
    if others:
        warn(
            f"{part}: {len(others)} of {len(others) + len(pictures)} files are not images and are "
            f"skipped, for example {others[0]}"
        )
    return pictures


SOURCES = {"imagefolder": Source("PATH", load)}
