"""File format of a distilled set: one safetensors file with everything needed to train on it.

The file has the images as the network receives them (normalised or whitened), a viewable copy, the
labels and a JSON description. Parametrised images can be stored as their parameters alone. There is
no path, time or host name in the file, so that equal runs write equal bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trajmatch import __version__, files, networks, pictures
from trajmatch.data.dataset import Dataset, check_same_data
from trajmatch.data.dsa import DSA
from trajmatch.data.preprocessing import ChannelNormalisation, Preprocessing
from trajmatch.data.sources import SEARCH_VARIABLE, load_dataset, resolve_uri, searched_folders
from trajmatch.data.zca import ZCA, from_parts
from trajmatch.errors import UserError, as_user_error, warn
from trajmatch.images import find_parametrisation, is_built_in
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops.arguments import Expect
from trajmatch.protocol import Protocol
from trajmatch.schema import Finite, Positive, PositiveInt, settings_of, settle
from trajmatch.training import train

FORMAT = "trajmatch artifact"
#: Version of files with parameters in place of images. Files with images have version 2 if they are
#: ZCA-whitened, else version 1, so that older releases can read them.
FORMAT_VERSION = 3

#: File name endings of other formats, which cause a warning.
_OTHER_ENDINGS = (".gif", ".h5", ".jpg", ".json", ".npy", ".npz", ".pkl", ".png", ".pt", ".pth")

_PARAMETER = "parameter."


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """Metadata in the file of a distilled set; :class:`Artifact` explains the fields."""

    label_kind: Literal["index", "logit", "target"]
    lr: Positive
    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]
    dsa: str
    network: dict[str, Any]
    class_names: Annotated[tuple[str, ...], Meta(min_length=1)]
    dataset_name: str
    dataset_fingerprint: str
    ipc: PositiveInt
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    scores: tuple[dict[str, Any], ...] = ()
    selection: Literal["last", "holdout", "test-max"] = "last"


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact(Description):
    """A distilled set and everything needed to train on it.

    Attributes:
        images: Synthetic images as trained (normalised or whitened). ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64; target logits ``[n, K]``, float32; or target outputs
            for regression, ``[n, D]``, float32, with images ordered by class.
        label_kind: ``"index"``, ``"logit"`` or ``"target"``.
        lr: Learned step size eta to train with.
        mean: Per-channel mean of the normalisation. ``C`` numbers.
        std: Per-channel standard deviation of the normalisation. ``C`` numbers.
        zca: ZCA whitening, used in place of ``mean`` and ``std``; None for no whitening.
        dsa: Augmentation to train with (:class:`trajmatch.data.dsa.DSA`).
        network: Spec of the network, as for :func:`trajmatch.networks.build`.
        class_names: Names of the ``K`` classes.
        dataset_fingerprint: Fingerprint of the real data set.
        ipc: Images per class.
        recipe: Settings of the run.
        versions: Software versions of the run.
        scores: Evaluation results, each with its protocol.
        selection: Rule that chose the iteration: ``"last"``, ``"holdout"`` or ``"test-max"``.
        parametrisation: Image parametrisation (``distill --images``); None for pixels.
        parameters: Tensors of the parametrisation, by name; empty for pixels.
        keeps_rendered: True to write the rendered images to the file along with ``parameters``.

    Raises:
        UserError: A field is invalid or does not fit the others.
    """

    images: Tensor
    labels: Tensor
    zca: ZCA | None = None
    parametrisation: str | None = None
    parameters: Tensors = field(default_factory=dict)
    keeps_rendered: bool = True

    def __post_init__(self) -> None:
        """Check every field, and that the fields fit together."""
        settle(self, str)
        images, labels, classes = self.images, self.labels, self.num_classes
        _check(images.dtype == torch.float32, "the images' dtype", "float32", images.dtype)
        shape = list(images.shape)
        _check(images.ndim == 4 and images.numel() > 0, "the images' shape", "[n, C, H, W]", shape)
        hard = self.label_kind == "index"
        dtype = torch.int64 if hard else torch.float32
        _check(labels.dtype == dtype, "the labels' dtype", str(dtype)[6:], labels.dtype)
        # Outputs of the network: D for targets [n, D], else K.
        outputs = labels.shape[-1] if self.label_kind == "target" and labels.ndim else classes
        wanted = [len(images)] if hard else [len(images), outputs]
        found = list(labels.shape)
        _check(found == wanted, "the labels' shape", str(wanted), found)
        for name, tensor in {"images": images, "labels": labels, **self.parameters}.items():
            if not tensor.isfinite().all():
                raise UserError(f"all values of the {name} should be finite, but some are not")
        if hard:
            low, high = int(labels.min()), int(labels.max())
            known = low >= 0 and high < classes
            _check(known, "every label", f"from 0 to {classes - 1}", f"from {low} to {high}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check(len(values) == shape[1], name, f"{shape[1]} numbers (one per channel)", values)
        if self.zca is not None:
            found = list(self.zca.mean.shape)
            _check(found == shape[1:], "the shape of the ZCA's images", str(shape[1:]), found)
        _check_network(self.network, images, outputs)
        DSA(self.dsa)

    def __repr__(self) -> str:
        """Return a one-line summary."""
        count, *shape = self.images.shape
        return (
            f"<Artifact of {self.dataset_name}: {count} images {shape} in {self.num_classes} "
            f"classes, {self.labels_are} labels, step size {self.lr:.4g}, "
            f"{self.network.get('name')}>"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """Map from pixels to network inputs. Test images need it; ``images`` are mapped already."""
        return self.zca or ChannelNormalisation(self.mean, self.std)

    @property
    def pixels(self) -> Tensor:
        """Viewable images, with the preprocessing undone. ``[n, C, H, W]``, uint8."""
        return self.preprocessing.invert(self.images).clamp(0, 1).mul(255).round().to(torch.uint8)

    @property
    def hard_labels(self) -> Tensor:
        """Class of each image; for soft labels, the class of the largest logit. ``[n]``, int64."""
        # With targets, the images are ordered by class, and each class has n / K of them.
        if self.label_kind == "target":
            return torch.arange(len(self.labels)) * self.num_classes // len(self.labels)
        return self.labels if self.label_kind == "index" else self.labels.argmax(dim=1)

    @property
    def labels_are(self) -> str:
        """Kind of labels: ``"hard"``, ``"soft"`` or ``"target"``."""
        return {"index": "hard", "logit": "soft", "target": "target"}[self.label_kind]

    @property
    def loss(self) -> str:
        """Training loss: ``"mse"`` for target outputs, else ``"cross_entropy"``."""
        return "mse" if self.label_kind == "target" else "cross_entropy"

    @property
    def num_outputs(self) -> int:
        """Number of network outputs: target size ``D``, or number of classes ``K``."""
        return self.labels.shape[1] if self.label_kind == "target" else self.num_classes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tensors and description, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, tensor in self._tensors().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def with_score(self, score: Mapping[str, Any]) -> "Artifact":
        """Return a copy with one more evaluation result, a mapping of JSON values."""
        return replace(self, scores=(*self.scores, dict(score)))

    def dataset(self) -> TensorDataset:
        """Return images and labels as a PyTorch dataset."""
        return TensorDataset(self.images, self.labels)

    def train(self, model: nn.Module, *, epochs: int = 1000, seed: int = 0) -> nn.Module:
        """Train a model on the set by MTT's evaluation protocol, with the learned step size.

        Args:
            model: Any module that :func:`trajmatch.ops.gradient` accepts. It is trained in place
                from its current parameters, left in training mode, and returned.
            epochs: Passes over the set; one more is run, as in MTT's code.
            seed: Seed of batch order, augmentation and dropout.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: ``model`` does not run on images of this size.
        """
        networks.check_runs_on(Expect("train").module(model), self.images.shape[1:])
        protocol = Protocol(lr=self.lr, dsa=self.dsa, epochs=epochs)
        return train(model, self.images, self.labels, protocol, seed, loss=self.loss)

    def images_preprocessed_by(self, other: Preprocessing) -> Tensor:
        """Return the images for a network that expects another preprocessing.

        ``[n, C, H, W]``, float32; ``images`` itself if the preprocessing is the same.
        """
        if self.preprocessing.same_as(other):
            return self.images
        return other.apply(self.preprocessing.invert(self.images.double()))

    def to_images(self, folder: files.PathLike) -> list[Path]:
        """Write ``pixels`` as one PNG per image, in one subfolder per class.

        Names of subfolders begin with the class index. ``folder`` is made if missing. Returns the
        paths relative to ``folder``, in image order. Raises UserError if ``folder`` is not empty or
        cannot be written.
        """
        root = Path(folder)
        files.check_writable(root)
        if any(root.iterdir()):
            raise UserError(f"{root} is not empty; give a new folder")
        digits = len(str(self.num_classes - 1))
        # Class names may contain characters that paths must not ("T-shirt/top").
        folders = [
            Path(f"{index:0{digits}d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}")
            for index, name in enumerate(self.class_names)
        ]
        for class_folder in folders:
            files.check_writable(root / class_folder)
        written = [0] * self.num_classes
        paths = []
        for image, label in zip(self.pixels, self.hard_labels.tolist(), strict=True):
            paths.append(folders[label] / f"{written[label]:04d}.png")
            files.write_bytes(root / paths[-1], pictures.png(image))
            written[label] += 1
        return paths

    def _description(self) -> dict[str, Any]:
        description = settings_of(self, Description)
        if self.zca is not None:
            description["zca"] = self.zca.spec()
        if self.parametrisation is not None:
            description["parametrisation"] = self.parametrisation
        return description

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by name."""
        # The fingerprint depends on this order.
        named = {f"{_PARAMETER}{name}": tensor for name, tensor in sorted(self.parameters.items())}
        images = {"images": self.images} if self.keeps_rendered else {}
        return {**images, "labels": self.labels, **named, **self.preprocessing.tensors()}

    @property
    def _learned(self) -> list[Tensor]:
        """Learned tensors: labels, and pixels or the parameters of the images."""
        return [self.labels, *(self.parameters.values() or [self.images])]

    @property
    def stored_values(self) -> int:
        """Number of learned values: pixels or image parameters, and soft labels or targets.

        Counts floating-point values and the one-byte values of quantised parametrisations.
        """
        kinds = (each for each in self._learned if each.is_floating_point() or each.itemsize == 1)
        return sum(each.numel() for each in kinds)

    @property
    def stored_bytes(self) -> int:
        """Size in a file, in bytes, of the pixels or image parameters and of the labels."""
        return sum(each.nbytes for each in self._learned)


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return logits ``[n, K]``, float32, whose softmax is ``probabilities``.

    ``probabilities`` are ``[n, K]``, floating point. Zeros count as the smallest normal float32.
    Raises UserError if a row does not sum to 1 or has a negative number.
    """
    rows = probabilities
    if rows.ndim != 2 or not rows.is_floating_point():
        raise UserError(
            "probabilities should be a floating-point tensor of shape [n, K], but are "
            f"{rows.dtype} of shape {list(rows.shape)}"
        )
    sums = rows.sum(dim=1)
    # `not (... all)` also catches NaN. The tolerance is far above the rounding of half precision.
    if not ((rows >= 0).all() and ((sums - 1).abs() <= 1e-2).all()):
        raise UserError(
            "probabilities should be at least 0 and sum to 1 in each row, but the smallest is "
            f"{rows.min():.4g} and the sums go from {sums.min():.4g} to {sums.max():.4g}; "
            "give logits as labels instead"
        )
    return rows.float().clamp(min=torch.finfo(torch.float32).tiny).log()


def warn_of_ending(path: files.PathLike) -> None:
    """Warn if the name of an artifact has the ending of another file format."""
    suffix = Path(path).suffix
    if suffix.lower() in _OTHER_ENDINGS:
        warn(
            f"{path} will be a safetensors file, which programs that read {suffix} files "
            "cannot open; choose a name that ends in .safetensors; `trajmatch export` writes other "
            "formats"
        )


def save(path: files.PathLike, artifact: Artifact) -> None:
    """Write an artifact atomically; raise UserError if that fails."""
    if not isinstance(artifact, Artifact):
        raise TypeError(f"expected artifact to be an Artifact, but got {type(artifact).__name__}")
    tensors, description = content(artifact)
    if artifact.keeps_rendered:
        tensors["pixels"] = artifact.pixels
        # The oldest version that has all that this artifact needs.
        description["format_version"] = 1 if artifact.zca is None else 2
    files.save_tensors(path, tensors, description)


def content(artifact: Artifact) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description that a file needs, without the viewable copy."""
    heads = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": artifact.fingerprint}
    return artifact._tensors(), {**heads, **artifact._description()}


def load(path: files.PathLike) -> Artifact:
    """Read an artifact that `trajmatch distill` or :func:`trajmatch.artifact.save` wrote.

    The whole content is checked. Tensors are on the CPU. Raises UserError if the file is missing,
    damaged, not an artifact, or of a newer format version.
    """
    tensors, metadata = files.load_tensors(path)
    artifact = assemble(path, tensors, metadata)
    # Files of early releases have only this checksum.
    if metadata.get("sha256") != artifact.fingerprint:
        raise UserError(f"{path} is damaged: its content does not match its checksum")
    return artifact


def assemble(
    path: files.PathLike, tensors: dict[str, Tensor], metadata: Mapping[str, Any]
) -> Artifact:
    """Make an artifact from the content of a file; raise UserError if the content is invalid."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a distilled set: its format is {metadata.get('format')!r}")
    if metadata.get("format_version") not in range(1, FORMAT_VERSION + 1):
        raise UserError(
            f"{path} has format version {metadata.get('format_version')}, and this is trajmatch "
            f"{__version__}, which reads versions 1 to {FORMAT_VERSION}; install the release that "
            "wrote the file"
        )
    names = [each.name for each in fields(Description)]
    spec = metadata.get("parametrisation")
    # Version 3 files hold parameters in place of images.
    wanted = {"labels"} if metadata["format_version"] > 2 else {"images", "labels", "pixels"}
    if missing := [*(wanted - tensors.keys()), *({*names} - metadata.keys())]:
        raise UserError(f"{path} is damaged: it has no {missing[0]!r}")
    parameters = files.under(_PARAMETER, tensors)
    keeps_rendered = "images" in tensors
    if not keeps_rendered:
        tensors["images"] = _rendered(path, spec, parameters, metadata["network"])
    with as_user_error(f"{path} is damaged: "):
        return Artifact(
            images=tensors["images"],
            labels=tensors["labels"],
            zca=from_parts(metadata["zca"], tensors) if "zca" in metadata else None,
            parametrisation=spec,
            parameters=parameters,
            keeps_rendered=keeps_rendered,
            **{name: metadata[name] for name in names},
        )


def source_dataset(distilled: Artifact, file: files.PathLike, data: str | None) -> Dataset:
    """Load the real data set of ``distilled``, from the address ``data`` or else by its name.

    ``file`` is the path of the distilled set, for messages. Raises UserError if the data set is not
    found or is another one.
    """
    name = distilled.dataset_name
    if (uri := data or resolve_uri(name)) is None:
        raise UserError(
            f"{file} was distilled from the data set {name!r}, which is neither shipped nor in a "
            f"folder that {SEARCH_VARIABLE} lists ({searched_folders()}); add its folder there, or "
            "say where it is with --data"
        )
    dataset = load_dataset(uri)
    known = {
        "name": name,
        "fingerprint": distilled.dataset_fingerprint,
        "class_names": list(distilled.class_names),
        "shape": list(distilled.images.shape[1:]),
    }
    check_same_data(f"{file} was distilled from", known, dataset.description, given_address=uri)
    return dataset


def _rendered(
    path: files.PathLike, spec: object, parameters: Tensors, network: Mapping[str, Any]
) -> Tensor:
    """Render the images of a file that holds only their parameters."""
    kinds = (ValueError, KeyError, IndexError, TypeError, RuntimeError)
    with as_user_error(f"the images of {path} cannot be rendered: ", *kinds):
        # Do not import a parametrisation of the user: loading a file must not run other code.
        if not isinstance(spec, str) or not is_built_in(spec):
            raise UserError(
                f"trajmatch {__version__} has no parametrisation {spec!r}; use the release that "
                "wrote the file, or a file that keeps the images themselves (distill "
                "--keep-rendered)"
            )
        size = network["image_size"]
        shape = torch.Size([network["in_channels"], size, size])
        with torch.no_grad():
            return find_parametrisation(spec).render(parameters, shape)


def current_versions() -> dict[str, str]:
    """Return the software versions that affect results."""
    return {"trajmatch": __version__, "torch": torch.__version__}


def _check(holds: bool, what: str, wanted: str, value: object) -> None:
    if not holds:
        raise UserError(f"{what} should be {wanted}, but is {value}")


def _check_network(spec: dict[str, Any], images: Tensor, num_classes: int) -> None:
    """Raise UserError unless the network can be built and fits the images and outputs."""
    kinds = (ValueError, RuntimeError, TypeError, OverflowError)
    with as_user_error(f"the network {spec} cannot be built: ", *kinds):
        # Do not build a user's own network here: loading a file must not import user code.
        if not networks.is_external(spec.get("name")):
            with torch.device("meta"):  # a damaged file may claim huge sizes: allocate nothing
                networks.build(spec)
    sizes = ("in_channels", "image_size", "image_size", "num_classes")
    for name, value in zip(sizes, (*images.shape[1:], num_classes), strict=True):
        _check(spec.get(name) == value, f"the network's {name}", str(value), spec.get(name))
