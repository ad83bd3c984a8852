"""Logits, accuracy and error of networks, without derivatives."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from trajmatch import networks
from trajmatch.data.preprocessing import Normalise
from trajmatch.ops.registration import operators

# Images per batch. For modules on a CPU the batch is small: the activations then stay in the cache,
# and below the size at which the C library returns memory to the kernel after each use. The batch
# is large enough to use all threads in the engine, and to keep a GPU busy.
_BATCH_MODULES, _BATCH_ENGINE, _BATCH_CUDA = 32, 250, 500


def forward_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function from images ``[B, C, H, W]`` to logits ``[B, K]``, for inference.

    If the engine runs the network, the function uses copies of the current parameters and has no
    derivative. Images need the dtype and device of the parameters.
    """
    if (description := networks.engine_description(model, precise=True)) is None:
        return model
    theta = networks.flat_parameters(model)
    return lambda images: operators.student_logits(theta, images, description)


def all_logits(
    model: nn.Module, images: Tensor, normalise: Normalise | None = None
) -> Iterator[Tensor]:
    """Yield the logits ``[B, K]`` of images ``[N, C, H, W]``, batch by batch.

    ``normalise`` is applied to each batch on the model's device. The model is put into evaluation
    mode and channels-last layout.
    """
    device = next(model.parameters()).device
    model.eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = forward_of(model)
    size = _BATCH_MODULES if forward is model else _BATCH_ENGINE
    for batch in images.split(size if device.type == "cpu" else _BATCH_CUDA):
        # Leave no_grad before the yield, which would keep it active in the caller's code.
        with torch.no_grad():
            batch = batch.to(device)
            if normalise is not None:
                batch = normalise(batch)
            found = forward(batch.contiguous(memory_format=torch.channels_last))
        yield found


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, *, normalise: Normalise | None = None
) -> float:
    """Return the percentage of images whose largest logit is that of the right class.

    Images with a logit that is not finite count as wrong. The model is put into evaluation mode and
    channels-last layout.

    Args:
        model: Network with logits ``[B, K]``.
        images: ``[N, C, H, W]``, inputs of ``normalise`` or, without it, of the network.
        labels: Class indices ``[N]``, int64.
        normalise: Function to apply to each batch on the model's device.

    Raises:
        ValueError: Images and labels are empty or differ in number.
    """
    check_answered("accuracy: ", images, labels)
    found = torch.cat([*all_logits(model, images, normalise)])
    right = found.argmax(dim=1) == labels.to(found.device)
    # If all logits are NaN, argmax gives class 0, and a diverged network would score like a guess.
    return 100.0 * int((right & found.isfinite().all(dim=1)).sum()) / len(labels)


def measured(
    model: nn.Module, images: Tensor, answers: Tensor, *, normalise: Normalise | None = None
) -> float:
    """Return the :func:`accuracy`; for targets ``[N, D]``, floating point, the mean squared error.

    The squared error is averaged over all elements; outputs that are not finite count as 0.
    ``answers`` are labels or targets. Other arguments and exceptions are as for :func:`accuracy`.
    """
    if not answers.is_floating_point():
        return accuracy(model, images, answers, normalise=normalise)
    check_answered("measured: ", images, answers)
    found = torch.cat([*all_logits(model, images, normalise)])
    finite = found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (finite.double() - answers.to(found.device)).square().mean().item()


def check_answered(prefix: str, images: Tensor, answers: Tensor) -> None:
    """Raise ValueError unless there are images, and equally many labels or targets."""
    if len(images) != len(answers) or len(images) == 0:
        raise ValueError(
            f"{prefix}expected as many labels as images, and at least one, but got "
            f"{len(images)} images and {len(answers)} labels"
        )
