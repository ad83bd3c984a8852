"""Logits, accuracy and error of networks that are only tested, not differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from trajmatch import networks
from trajmatch.ops.student import logits_on_engine

# Images at a time. Of modules on a CPU few, so that activations stay in cache and below the size
# from which the C library returns memory to the kernel after each use; otherwise enough for all
# threads or to keep a GPU busy.
_BATCH_MODULES, _BATCH_ENGINE, _BATCH_CUDA = 32, 250, 500


def forward_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function of images whose values are the model's logits; not differentiable.

    The engine computes them where it knows the network (:func:`trajmatch.ops.engine_for`), with
    copies of the parameters as they are now.

    Args:
        model: The network.

    Returns:
        A function from images ``[B, C, H, W]``, dtype and device of the parameters, to ``[B, K]``.
    """
    description = networks.engine_description(model, precise=True)
    if description is None:
        return model
    return logits_on_engine(networks.flat_parameters(model), description)


def all_logits(
    model: nn.Module, images: Tensor, normalise: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Yield the logits of images, batch by batch.

    The model is put into evaluation mode and, where it has convolutions, into channels-last layout.

    Args:
        model: The network.
        images: ``[N, C, H, W]``, as the network sees them, or as ``normalise`` takes them.
        normalise: Applied to every batch on the model's device.

    Yields:
        ``[B, K]``, on the model's device.
    """
    device = next(model.parameters()).device
    model.eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = forward_of(model)
    size = _BATCH_MODULES if forward is model else _BATCH_ENGINE
    for batch in images.split(size if device.type == "cpu" else _BATCH_CUDA):
        with torch.no_grad():
            batch = batch.to(device)
            if normalise is not None:
                batch = normalise(batch)
            found = forward(batch.contiguous(memory_format=torch.channels_last))
        yield found


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Share of images whose largest logit is that of their class, in percent.

    An image with a logit that is not finite counts as wrong: where a network diverged, ``argmax``
    would name class 0 and score chance. The model is put into evaluation mode and, where it has
    convolutions, into channels-last layout.

    Args:
        model: Network with logits ``[B, K]``.
        images: ``[N, C, H, W]``, as the network sees them, or as ``normalise`` takes them.
        labels: Class indices ``[N]``, int64.
        normalise: Applied to every batch on the model's device; without it images are used as they
            are.

    Returns:
        A number from 0 to 100.

    Raises:
        ValueError: Images and labels are empty or differ in number.
    """
    check_answered("accuracy: ", images, labels)
    found = torch.cat([*all_logits(model, images, normalise)])
    right = found.argmax(dim=1) == labels.to(found.device)
    return 100.0 * int((right & found.isfinite().all(dim=1)).sum()) / len(labels)


def measured(
    model: nn.Module,
    images: Tensor,
    answers: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Return the :func:`accuracy`, or of targets the mean squared error over all elements.

    An output that is not finite, of a network that diverged, counts as 0 in the error.

    Args:
        model: Network with outputs ``[B, D]``; see :func:`accuracy`.
        images: ``[N, C, H, W]``, as for :func:`accuracy`.
        answers: Class indices ``[N]``, int64, or targets ``[N, D]``, float32.
        normalise: As for :func:`accuracy`.

    Raises:
        ValueError: Images and answers are empty or differ in number.
    """
    if not answers.is_floating_point():
        return accuracy(model, images, answers, normalise=normalise)
    check_answered("measured: ", images, answers)
    found = torch.cat([*all_logits(model, images, normalise)])
    finite = found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (finite.double() - answers.to(found.device)).square().mean().item()


def check_answered(prefix: str, images: Tensor, answers: Tensor) -> None:
    """Raise ValueError unless there are images, and as many labels or targets."""
    if len(images) != len(answers) or len(images) == 0:
        raise ValueError(
            f"{prefix}expected as many labels as images, and at least one, but got "
            f"{len(images)} images and {len(answers)} labels"
        )
