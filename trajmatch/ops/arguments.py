"""Argument checks of the student operators; C++ repeats the checks with the same messages."""

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trajmatch.networks.engine import uncompiled
from trajmatch.networks.flat import num_parameters
from trajmatch.reference import Loss

#: A tensor, a NumPy array, or nested sequences of numbers.
ArrayLike = Tensor | Sequence[Any] | Any

#: Augmentation: function of (images ``[B, C, H, W]``, step) that returns images.
Augment = Callable[[Tensor, int], Tensor]

#: Kinds of soft labels: logits, whose softmax is taken, and probabilities, used as they are.
SOFT_LABELS = ("logits", "probabilities")

#: Dtypes of tokens, which are inputs without gradient.
_TOKENS = (torch.int64, torch.int32)


@runtime_checkable
class DsaReplay(Protocol):
    """Augmentation that can return its random draws as parameters of :func:`trajmatch.ops.dsa`.

    An unroll on the engine uses the parameters instead of calling the augmentation.
    :meth:`trajmatch.data.DSA.replay` returns an augmentation of this kind.
    """

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return the augmented images of a step."""

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """Return the DSA parameters ``[count, 5]`` of the images of a step."""


class Expect:
    """Argument checks of the operator ``op``; the error messages contain its name."""

    def __init__(self, op: str) -> None:
        self._op = op

    def message(self, argument: str, wanted: str, came: object) -> str:
        """Return an error message."""
        return f"trajmatch::{self._op}: expected {argument} to {wanted}, but got {came}"

    def that(self, condition: bool, argument: str, wanted: str, came: object) -> None:
        """Raise ValueError unless the condition holds."""
        if not condition:
            raise ValueError(self.message(argument, wanted, came))

    def kind(self, condition: bool, argument: str, wanted: str, came: object) -> None:
        """Raise TypeError unless the condition holds."""
        if not condition:
            raise TypeError(self.message(argument, wanted, came))

    def choice(self, argument: str, value: str, choices: Sequence[str]) -> None:
        """Raise ValueError unless the value is one of the choices."""
        self.that(value in choices, argument, f"be one of {', '.join(choices)}", repr(value))

    def shape(self, argument: str, tensor: Tensor, shape: Sequence[int]) -> None:
        """Raise ValueError unless the tensor has this shape."""
        came = list(tensor.shape)
        self.that(came == list(shape), argument, f"have shape {list(shape)}", came)

    def floating(self, argument: str, tensor: Tensor) -> None:
        """Raise TypeError unless the argument is a float32 or float64 tensor."""
        self.is_tensor(argument, tensor)
        fits = tensor.dtype in (torch.float32, torch.float64)
        self.kind(fits, argument, "be float32 or float64", _name(tensor.dtype))

    def like(
        self,
        argument: str,
        tensor: Tensor,
        other: Tensor,
        name: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Raise unless the argument is a dense tensor with the device and dtype of ``other``."""
        self.is_tensor(argument, tensor)
        wanted = f"be on {other.device} (the device of {name})"
        self.that(tensor.device == other.device, argument, wanted, tensor.device)
        dtype = dtype or other.dtype
        self.kind(tensor.dtype == dtype, argument, f"be {_name(dtype)}", _name(tensor.dtype))
        self.kind(tensor.layout == torch.strided, argument, "be a dense tensor", tensor.layout)

    def is_tensor(self, argument: str, value: object) -> None:
        """Raise TypeError unless the argument is a tensor."""
        self.kind(isinstance(value, Tensor), argument, "be a torch.Tensor", type(value).__name__)

    def module(self, model: Any) -> nn.Module:
        """Return a module, unwrapped from ``torch.compile``; raise TypeError for anything else."""
        # A class instead of an instance is a common mistake, so the message says so.
        came = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        self.kind(isinstance(model, nn.Module), "model", "be a torch.nn.Module", came)
        return uncompiled(model)

    def model(self, model: nn.Module) -> nn.Module:
        """Return the module, unwrapped from ``torch.compile``; raise unless it can be a student."""
        model = self.module(model)
        kind = type(model).__name__
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        self.kind(not parallel, "model", "be the network itself", f"{kind}; pass model.module")
        came = f"{kind}; pass the module that it was compiled from"
        wanted = "be an ordinary (not scripted) torch.nn.Module"
        self.kind(not isinstance(model, torch.jit.ScriptModule), "model", wanted, came)
        # A lazy parameter has no size before the first call, so theta cannot be compared with it.
        for name, parameter in model.named_parameters():
            lazy = isinstance(parameter, nn.UninitializedParameter)
            came = f"the lazy {name}; call the model on a batch first"
            self.that(not lazy, "model", "have initialised parameters", came)
        trained = any(each.requires_grad for each in model.parameters())
        came = f"{kind}, where no parameter has requires_grad=True"
        self.that(trained, "model", "have parameters to train", came)
        return model

    def counts(self, argument: str, values: Sequence[int]) -> list[int]:
        """Return whole numbers as a list; raise TypeError for anything else."""
        try:
            return [operator.index(each) for each in values]
        except TypeError:
            wanted = "be a sequence of whole numbers"
            raise TypeError(self.message(argument, wanted, repr(values))) from None

    def augment(self, augment: Callable[..., Any] | None) -> None:
        """Raise TypeError unless the augmentation is None or callable with (images, step)."""
        if augment is None or isinstance(augment, DsaReplay):
            return
        came = type(augment).__name__
        # A random augmentation strategy draws anew in every call; its replay repeats the draws.
        if hasattr(augment, "replay"):
            came += "; pass augment.replay(seed)"
        elif callable(augment):
            try:
                inspect.signature(augment).bind(None, 0)
                return
            except ValueError:  # a builtin has no signature
                return
            except TypeError as error:
                came += f" ({error})"
        raise TypeError(self.message("augment", "be a function of (images, step)", came))

    def theta(self, argument: str, theta: Tensor, model: nn.Module) -> None:
        """Raise unless ``theta`` is a float32 or float64 vector ``[P]`` of this model."""
        self.floating(argument, theta)
        self.shape(argument, theta, [num_parameters(model)])

    def loss(self, loss: Loss, losses: Sequence[str], soft_labels: str) -> None:
        """Raise ValueError unless ``loss`` and ``soft_labels`` are known and can be combined."""
        known = f"be one of {', '.join(losses)}, or a function of (outputs, targets)"
        self.that(callable(loss) or loss in losses, "loss", known, repr(loss))
        self.choice("soft_labels", soft_labels, SOFT_LABELS)
        targets = loss == "mse" and soft_labels != SOFT_LABELS[0]
        self.that(not targets, "soft_labels", "be left out with loss='mse'", repr(soft_labels))

    def images(self, images: Tensor, theta: Tensor, name: str, engine: bool) -> None:
        """Raise unless ``images`` is a batch of a dtype and shape that the model can run on."""
        # The engine takes floating-point [n, C, H, W]; autograd also takes [n, ...] and tokens.
        tokens = isinstance(images, Tensor) and images.dtype in _TOKENS and not engine
        self.like("images", images, theta, name, images.dtype if tokens else None)
        if engine:
            self.that(images.dim() == 4, "images", "have 4 dimensions", list(images.shape))
        enough = images.dim() > 0 and len(images) > 0
        self.that(enough, "images", "hold at least one image", list(images.shape))

    def labels(
        self, labels: ArrayLike, images: Tensor, theta: Tensor, loss: Loss, soft_labels: str
    ) -> Tensor:
        """Return labels as a tensor; raise unless dtype and shape fit the loss."""
        # Cross-entropy takes class indices [n] (int64) or soft labels [n, K]; the mean squared
        # error takes targets [n, ...]; a function takes any tensor [n, ...]. The range of class
        # indices and the other dimensions are checked later, against the outputs of the model.
        labels = self.tensor("labels", labels, theta.device, theta.dtype)
        count, soft = len(images), labels.is_floating_point()
        came = _name(labels.dtype)
        wanted = f"be {_name(theta.dtype)} (targets of loss='mse')"
        self.kind(soft or loss != "mse", "labels", wanted, came)
        fits = soft or labels.dtype == torch.int64 or not isinstance(loss, str)
        wanted = f"be int64 (class indices) or {_name(theta.dtype)} ({soft_labels})"
        self.kind(fits, "labels", wanted, came)
        dtype = theta.dtype if soft and isinstance(loss, str) else labels.dtype
        self.like("labels", labels, images, "images", dtype)
        if not isinstance(loss, str) or loss == "mse":
            fits = labels.dim() > 0 and len(labels) == count
            self.that(fits, "labels", f"have shape [{count}, ...]", list(labels.shape))
        elif soft:
            wanted = f"have shape [{count}, K] ({soft_labels} of {count} images)"
            fits = labels.dim() == 2 and len(labels) == count
            self.that(fits, "labels", wanted, list(labels.shape))
        else:
            self.shape("labels", labels, [count])
        return labels

    def batches(
        self, batches: ArrayLike | Sequence[ArrayLike], like: Tensor
    ) -> tuple[Tensor, list[int]]:
        """Return the indices of all steps as one new vector, and the number of indices per step."""
        # Arrays and tensors [N, B] become a single row of N * B indices.
        if hasattr(batches, "__array__"):
            batches = self.tensor("batches", batches, like.device, like.dtype)
            wanted = "have 2 dimensions, or to be a sequence of one-dimensional tensors"
            self.that(batches.dim() == 2, "batches", wanted, list(batches.shape))
            sizes, rows = [batches.shape[1]] * len(batches), [batches.reshape(-1)]
        else:
            wanted = "be a tensor of shape [N, B], or a sequence of tensors or lists"
            self.kind(isinstance(batches, Iterable), "batches", wanted, type(batches).__name__)
            rows = [self.tensor("batches", each, like.device, like.dtype) for each in batches]
            for row in rows:
                self.that(row.dim() == 1, "every batch", "have 1 dimension", list(row.shape))
            sizes = [len(row) for row in rows]
        self.that(len(sizes) > 0, "batches", "hold at least one step", "none")
        wanted = "hold at least one image in every step"
        self.that(min(sizes) > 0, "batches", wanted, f"sizes {sizes}")
        # torch.cat copies, so that the caller may overwrite the indices before the backward pass.
        flat = torch.cat(rows)
        self.like("batches", flat, like, "theta0", torch.int64)
        return flat, sizes

    def indices(self, flat: Tensor, count: int) -> None:
        """Raise ValueError if an index is out of range; indices on CUDA are not checked."""
        # On CUDA the check would have to wait for the device. The unroll operator checks by itself.
        if flat.device.type == "cpu":
            low, high = map(int, flat.aminmax())
            self.that(low >= 0, "batches", f"hold indices in [0, {count})", low)
            self.that(high < count, "batches", f"hold indices in [0, {count})", high)

    def tensor(
        self, argument: str, value: ArrayLike, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return a tensor unchanged; convert other values to int64, or ``dtype`` if floating."""
        if isinstance(value, Tensor):
            return value
        try:
            tensor = torch.as_tensor(value, device=device)
            if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor.to(torch.int64)
            # Convert the value itself: a list of Python's floats has become float32 above.
            return torch.as_tensor(value, dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            wanted, came = "be a tensor, an array or a list of numbers", type(value).__name__
            raise TypeError(self.message(argument, wanted, f"{came} ({error})")) from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
