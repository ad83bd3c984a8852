"""Initial synthetic images, initial parameters of their parametrisation, and frozen parameters.

Synthetic images are normalised and ordered by class; real images are training images. The
generators ``draw`` make all random choices.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trajmatch.artifact import Artifact
from trajmatch.data import Dataset
from trajmatch.distill.parameters import SyntheticSet, of_images, tensors_by_name
from trajmatch.distill.setup import Setup
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts
from trajmatch.images.palette import k_means
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import blamed, described
from trajmatch.memory import check_memory


def from_real(dataset: Dataset, ipc: int, draw: torch.Generator) -> SyntheticSet:
    """Draw random real images (MTT: ``pix_init=real``); UserError if a class has too few."""
    chosen = [
        members[torch.randperm(len(members), generator=draw)[:ipc]]
        for members in _members(dataset, ipc)
    ]
    return _real(dataset, chosen)


def from_correct(
    dataset: Dataset, ipc: int, experts: FinalExperts, draw: torch.Generator
) -> SyntheticSet:
    """Draw real images that an expert classifies correctly (DATM: ``samples_predicted_correctly``).

    UserError is raised if all experts together find fewer than ``ipc`` images of a class.
    """
    chosen = []
    for index, members in enumerate(_members(dataset, ipc)):
        left = members[torch.randperm(len(members), generator=draw)]
        # Take first the images that expert 0 gets right, then those that expert 1 does, and so on.
        rows = left[:0]
        for expert in range(experts.count):
            images = dataset.normalise(dataset.train_images[left])
            right = experts.logits(expert, images).argmax(dim=1) == index
            # The next expert classifies only the images that this one gets wrong.
            rows, left = torch.cat([rows, left[right]])[:ipc], left[~right]
            if len(rows) == ipc or len(left) == 0:
                break
        if len(rows) < ipc:
            raise UserError(
                f"--init correct finds only {len(rows)} images of class "
                f"{dataset.class_names[index]!r} that one of the {experts.count} experts "
                f"classifies correctly, but the run needs {ipc}; train experts for longer, lower "
                "--ipc, or use --init real"
            )
        chosen.append(rows)
    return _real(dataset, chosen)


def from_representatives(
    dataset: Dataset, ipc: int, experts: FinalExperts, draw: torch.Generator, clusters: int | None
) -> SyntheticSet:
    """Choose real images near k-means centres of their class (AST, representative initialisation).

    The points are the logits of one random expert. Each class has ``clusters`` clusters (``ipc`` if
    None), and each cluster contributes the same number of images, the nearest to its centre.
    UserError is raised if a class has fewer than ``ipc`` images, or if ``clusters`` does not divide
    ``ipc``.
    """
    # The authors' code has one cluster per image in its first release, 10 per class in its last.
    count = ipc if clusters is None else clusters
    if ipc % count:
        raise UserError(
            f"--init-clusters {count} should divide the {ipc} images per class, so that every "
            "cluster gives the same number; leave it out for one cluster for each image"
        )
    expert = int(torch.randint(experts.count, (), generator=draw))
    state = int(torch.randint(2**31, (), generator=draw))
    chosen = []
    for members in _members(dataset, ipc):
        points = experts.logits(expert, dataset.normalise(dataset.train_images[members])).double()
        # Distances of all images of the class to one centre at a time: [n].
        rows: list[int] = []
        for to_centre in torch.cdist(k_means(points, count, state), points):
            to_centre[rows] = torch.inf  # already taken for an earlier cluster
            rows += to_centre.argsort(stable=True)[: ipc // count].tolist()
        chosen.append(members[rows])
    return _real(dataset, chosen)


def from_difficulty(dataset: Dataset, ipc: int, scores: Tensor, beta: float) -> SyntheticSet:
    """Take real images from hard to easy (SelMatch, ICML 2024).

    In each class, leave out the hardest ``int(beta * ipc)`` images and take the next ``ipc``.
    ``scores [n]`` has the difficulty of each training image; higher is harder. UserError is raised
    if a class has too few images.
    """
    chosen, skipped = [], int(beta * ipc)
    for index, members in enumerate(_members(dataset, ipc)):
        if len(members) < skipped + ipc:
            raise UserError(
                f"--init-beta {beta:g} leaves out the hardest {skipped} images of each class, and "
                f"the run takes the next {ipc}, but class {dataset.class_names[index]!r} has "
                f"only {len(members)}; lower --init-beta or --ipc"
            )
        hardest = members[scores[members].argsort(descending=True, stable=True)]
        chosen.append(hardest[skipped : skipped + ipc])
    return _real(dataset, chosen)


def from_noise(dataset: Dataset, ipc: int, draw: torch.Generator) -> SyntheticSet:
    """Draw standard normal noise (MTT: ``pix_init=noise``); UserError if memory is too small."""
    shape = (dataset.num_classes * ipc, *dataset.train_images.shape[1:])
    check_memory(f"{shape[0]} images", 4 * math.prod(shape), "lower --ipc")
    images = torch.randn(shape, generator=draw)
    return SyntheticSet(images, torch.arange(dataset.num_classes).repeat_interleave(ipc))


def from_artifact(source: Artifact, path: str, dataset: Dataset, ipc: int) -> SyntheticSet:
    """Return an earlier result's images, converted to the run's preprocessing, and its labels.

    UserError is raised if classes, image shape, loss or number of outputs differ, if the number of
    images is not a multiple of the number of classes, or if it exceeds ``ipc`` per class.
    """
    shape = tuple(dataset.train_images.shape[1:])
    for what, found, wanted in (
        ("classes", source.class_names, dataset.class_names),
        ("images of shape", tuple(source.images.shape[1:]), shape),
        ("the training loss", source.loss, dataset.loss),
        ("network outputs:", source.num_outputs, dataset.num_outputs),
    ):
        if found != wanted:
            raise UserError(
                f"--init-from {path} does not fit this run: it has {what} {found}, and the run "
                f"on {dataset.name} needs {wanted}"
            )
    count, rest = divmod(len(source.images), dataset.num_classes)
    if rest or count > ipc:
        raise UserError(
            f"--init-from {path} does not fit this run: it has {len(source.images)} images in "
            f"{dataset.num_classes} classes, but the run has {ipc} per class; give "
            f"a set with equally many images in each class, at most {ipc}, or a larger --ipc"
        )
    # The earlier run may have normalised or whitened its images in another way.
    return SyntheticSet(source.images_preprocessed_by(dataset.preprocessing), source.labels)


def _members(dataset: Dataset, ipc: int) -> list[Tensor]:
    """Return the indices of each class's training images; UserError if fewer than ``ipc``."""
    members = []
    for index, name in enumerate(dataset.class_names):
        members.append((dataset.train_labels == index).nonzero().squeeze(1))
        if len(members[-1]) < ipc:
            raise UserError(
                f"the run asks for more real images than class {name!r} of {dataset.name} has "
                f"({ipc} instead of {len(members[-1])}); lower --ipc, choose --images with fewer "
                "images per class, or use --init noise"
            )
    return members


def _real(dataset: Dataset, chosen: list[Tensor]) -> SyntheticSet:
    """Return the training images with these indices, with their labels or targets."""
    rows = torch.cat(chosen)
    images = dataset.train_images[rows]
    return SyntheticSet(dataset.normalise(images), dataset.train_answers[rows].clone())


def initial_parameters(
    setup: Setup, images: Tensor, earlier: Tensors | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parameters for initial images, and the images that the parameters render.

    ``images`` are ``[n, C, H, W]``, float32, ordered by class. ``earlier`` has the parameters of an
    earlier run for the first images of each class. UserError is raised if the parametrisation
    fails or returns something unusable.
    """
    parametrisation, spec = setup.parametrisation, setup.config.images
    classes = setup.dataset.num_classes
    with blamed(f"initial of --images {spec}"):
        if earlier is None:
            made = parametrisation.initial(images, classes)
        else:
            # `earlier` renders the first `count` images per class. Append the others.
            count = len(parametrisation.render(earlier, images.shape[1:])) // classes
            more = images.unflatten(0, (classes, -1))[:, count:].flatten(0, 1)
            made = parametrisation.extended(earlier, more, classes) if len(more) else earlier
    found = tensors_by_name(f"--images {spec}: initial", made)
    parameters = {name: tensor.detach().clone() for name, tensor in found.items()}
    # `of_images` leaves out names with another meaning, such as "labels".
    if taken := parameters.keys() - {*of_images(parameters)}:
        raise UserError(
            f"--images {spec}: the parameter name {taken.pop()!r} is reserved; choose another"
        )
    if not any(tensor.is_floating_point() for tensor in parameters.values()):
        raise UserError(
            f"--images {spec}: initial should return at least one floating-point tensor to learn, "
            "but returned none"
        )
    # Parametrisations may lose detail, so the rendered images differ from the given ones.
    return parameters, _rendered(setup, parameters, images)


def _rendered(setup: Setup, parameters: Tensors, like: Tensor) -> Tensor:
    """Render parameters; raise UserError unless the images are sound and have all gradients.

    Images are sound if they are finite, with shape and type of ``like``.
    """
    spec = f"--images {setup.config.images}"
    learned = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in parameters.items()
    }
    with blamed(f"render of {spec}"), torch.enable_grad():
        images = setup.parametrisation.render(learned, like.shape[1:])
    fits = isinstance(images, Tensor) and images.shape == like.shape
    if not (fits and images.dtype == like.dtype):
        raise UserError(
            f"{spec}: render should return images of shape {list(like.shape)} and type "
            f"{like.dtype}, but returned {described(images)}"
        )
    if not images.isfinite().all():
        raise UserError(f"{spec}: render returned images that are not finite")
    floats = {name: tensor for name, tensor in learned.items() if tensor.requires_grad}
    grads: Sequence[Tensor | None] = [None]
    with blamed(f"the gradient of {spec}"):
        if images.requires_grad:
            grads = torch.autograd.grad(images.sum(), [*floats.values()], allow_unused=True)
    for name, grad in zip(floats, grads, strict=False):
        if grad is None:
            raise UserError(
                f"{spec}: render should return images with a gradient with respect to every "
                f"floating-point parameter, but there is none for {name!r}"
            )
    return images.detach()


def free_rows(spec: str, value: Tensor, classes: int, freeze: float) -> Tensor:
    """Return the factor of each row's gradient: 0 for frozen rows, 1 for others.

    The result ``[rows, 1, ...]`` has as many dimensions as ``value``, whose rows are ordered by
    class. ``freeze`` is the number of rows per class to freeze or, below 1, a fraction. UserError
    is raised if the rows do not divide evenly among the classes, or if all or none would be frozen.
    """
    rows, rest = divmod(len(value), classes) if value.dim() else (0, 0)
    if rows == 0 or rest:
        raise UserError(
            f"--freeze {freeze:g} needs parameters with the same number of rows for each class, "
            f"but --images {spec} has one of shape {list(value.shape)}"
        )
    kept = int(freeze * rows) if freeze < 1 else int(freeze)
    if not 0 < kept < rows:
        effect = "leaves nothing to learn" if kept else "freezes nothing"
        raise UserError(
            f"--freeze {freeze:g} {effect}: each class has {rows} stored images, and "
            "some should be frozen and some learned; give another number, or a larger --ipc"
        )
    # The first rows of each class are frozen.
    free = torch.ones(classes, rows)
    free[:, :kept] = 0
    return free.to(value).reshape(-1, *[1] * (value.dim() - 1))
