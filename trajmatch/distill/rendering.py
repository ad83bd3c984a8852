"""Initial parameters of the images, and frozen rows."""

from __future__ import annotations

import torch
from torch import Tensor

from trajmatch.distill.parameters import of_images, tensors_by_name
from trajmatch.distill.setup import Setup
from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import blamed, described


def initial_parameters(
    setup: Setup, images: Tensor, earlier: Tensors | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the images' initial parameters, and the images that they render.

    Args:
        setup: Has the parametrisation.
        images: Initial images, ordered by class. ``[n, C, H, W]``, float32.
        earlier: Parameters to continue from, for the first images of each class, if any.

    Raises:
        UserError: The parametrisation fails, or returns something unusable.
    """
    parametrisation, spec = setup.parametrisation, setup.config.images
    classes = setup.dataset.num_classes
    with blamed(f"initial of --images {spec}"):
        if earlier is None:
            made = parametrisation.initial(images, classes)
        else:
            # `earlier` has `count` images per class; the run's further images extend it.
            count = len(parametrisation.render(earlier, images.shape[1:])) // classes
            more = images.unflatten(0, (classes, -1))[:, count:].flatten(0, 1)
            made = parametrisation.extended(earlier, more, classes) if len(more) else earlier
    found = tensors_by_name(f"--images {spec}: initial", made)
    parameters = {name: tensor.detach().clone() for name, tensor in found.items()}
    if taken := parameters.keys() - {*of_images(parameters)}:
        raise UserError(f"--images {spec}: the name {taken.pop()!r} is taken; choose another")
    if not any(tensor.is_floating_point() for tensor in parameters.values()):
        raise UserError(f"--images {spec}: initial returned nothing that can be learned")
    with blamed(f"render of --images {spec}"), torch.no_grad():
        rendered = parametrisation.render(parameters, images.shape[1:])
    if not isinstance(rendered, Tensor) or rendered.shape != images.shape:
        raise UserError(
            f"--images {spec}: render should return images of shape {list(images.shape)}, but "
            f"returned {described(rendered)}"
        )
    return parameters, rendered


def free_rows(spec: str, value: Tensor, classes: int, freeze: float) -> Tensor:
    """Return a factor for the gradient of each row: 0 if ``--freeze`` keeps it, else 1.

    Args:
        spec: Parametrisation, for messages.
        value: Parameter with the same number of rows for each class, ordered by class.
        classes: Number of classes.
        freeze: Rows of each class to freeze: a number, or, below 1, a fraction.

    Returns:
        ``[rows, 1, ...]``, with as many dimensions as the parameter.

    Raises:
        UserError: The rows do not divide among the classes, or none or all would be frozen.
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
            f"--freeze {freeze:g} {effect}: each class has {rows} images, and "
            "some should be frozen and some learned; give another number, or a larger --ipc"
        )
    free = torch.ones(classes, rows)
    free[:, :kept] = 0
    return free.to(value).reshape(-1, *[1] * (value.dim() - 1))
