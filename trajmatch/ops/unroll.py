"""Unrolled student steps, differentiated exactly in the memory of one step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch._extension import _C
from trajmatch.networks.differentiable import treats_images_alone
from trajmatch.networks.engine import batch_norm_channels, engine_description
from trajmatch.ops.arguments import ArrayLike, Augment, DsaReplay, Expect
from trajmatch.ops.errors import public_operator
from trajmatch.ops.loop import Loop, Steps, Unroll
from trajmatch.ops.optimisers import Optimiser, Updates, check_lr, check_optimiser, check_state
from trajmatch.ops.parts import MicroBatches, ShardedLoop, Shards
from trajmatch.ops.registration import by_reference, operators, register
from trajmatch.ops.student import AutogradStudent, EngineStudent, Student, engine_loss
from trajmatch.reference import Loss, OptimiserState


@public_operator
def unroll(
    model: nn.Module,
    theta0: Tensor,
    images: Tensor,
    labels: ArrayLike,
    lr: ArrayLike,
    batches: ArrayLike | Sequence[ArrayLike],
    *,
    loss: Loss = "cross_entropy",
    soft_labels: str = "logits",
    momentum: float = 0.0,
    optimiser: Optimiser | None = None,
    state: OptimiserState | None = None,
    return_state: bool = False,
    loss_scale: float = 1.0,
    steps: Sequence[int] | None = None,
    augment: Augment | None = None,
    tape_bytes: int = 0,
    precise: bool = False,
    exact: bool = True,
    micro_batch: int | None = None,
    shards: Shards | None = None,
) -> Any:
    """Return the parameters after ``N`` steps of a student on synthetic images (MTT, section 3.2).

    A step is ``theta_{t+1} = theta_t - lr b_t`` with ``b_t = momentum b_{t-1} + loss_scale g_t``,
    where ``g_t`` is the gradient of the loss at ``theta_t`` on the augmented images
    ``A_t(images[batches[t]])``. An ``optimiser`` replaces this rule.

    Gradients are exact. The adjoint walks the steps backwards and recomputes one step at a time, so
    memory is one step's activations plus ``N`` parameter vectors (``2 N`` for SGD with a state,
    Nesterov momentum, weight decay or several step sizes; ``3 N`` for Adam). The recomputation
    restores the model's mode and buffers, autocast and the global random generators of Python,
    NumPy and PyTorch, so dropout repeats its masks.

    On the engine (:func:`trajmatch.ops.engine_for`), the whole loop runs as one operator, and its
    adjoint as another. With ``micro_batch``, ``shards`` or an ``augment`` other than DSA, the loop
    runs in Python, and only its steps run on the engine. Other models, and all models if ``loss``
    is a function, run eagerly on autograd, with the graph of one step at a time.

    Args:
        model: The student: any twice differentiable module, used in its current mode and not
            changed. In training mode, batch norm is differentiated through the statistics of each
            batch. Frozen parameters (``requires_grad=False``) keep their values in ``theta0``, even
            with weight decay. A compiled module runs uncompiled.
        theta0: Parameters to start from. ``[P]``, float32 or float64.
        images: Synthetic images ``[n, C, H, W]``, dtype and device of ``theta0``. On autograd, also
            ``[n, ...]`` or tokens (int64 or int32), which have no gradient.
        labels: A tensor, array or list: class indices ``[n]`` (int64), soft labels ``[n, K]`` or
            targets ``[n, ...]``.
        lr: Step size. A number, or a tensor, array or list with dtype and device of ``theta0``:
            ``[]``, one for all; ``[N]``, one per step; ``[1, T]``, one per parameter tensor in the
            order of ``model.parameters()``; or ``[N, T]``, one per step and parameter tensor.
        batches: Indices into ``images``, int64 on the device of ``theta0``: ``[N, B]``, or a
            sequence of ``N`` vectors of any length. Arrays and lists are accepted.
        loss: ``"cross_entropy"``, ``"mse"`` or a function, with labels as for
            :func:`trajmatch.ops.gradient`. With ``micro_batch`` or ``shards`` a function gets parts
            of the batch, so it must be a mean over single images.
        soft_labels: As for :func:`trajmatch.ops.gradient`.
        momentum: Heavy-ball factor (AST); short for ``optimiser=SGD(momentum)``.
        optimiser: :class:`trajmatch.ops.SGD` or :class:`trajmatch.ops.Adam`, as in ``torch.optim``.
        state: Optimiser state before the first step, returned by an earlier call. None: a new one.
        return_state: True to return the state after the last step, too.
        loss_scale: Factor of the student's loss (AST's balance ``kappa``), not of weight decay.
        steps: Numbers of steps, from 1 to ``N``, after which to return parameters. None: only after
            step ``N``.
        augment: Differentiable function of (images ``[B, C, H, W]``, step) that returns images. The
            backward pass calls it again, with the global random generators restored, and needs the
            same result. If the whole loop is one operator, a :class:`DsaReplay` is not called: its
            parameters are read once, before the first step.
        tape_bytes: Memory in bytes for activations. If the whole loop is one operator, the last
            steps keep their activations, as far as they fit, and are not recomputed (times in
            ``docs/performance.md``). A loop in Python keeps none.
        precise: As for :func:`trajmatch.ops.gradient`.
        exact: False for TESLA's approximate gradient (Cui et al., ICML 2023): the adjoint leaves
            out the Hessians, through which the gradients of later steps depend on earlier steps. It
            still includes optimiser state and weight decay. The approximate gradient differs in
            direction and length, and costs the same. The returned parameters do not change.
        micro_batch: Largest number of images to run through the network at once, to save memory.
            Only the order of sums changes. It saves nothing for a ConvNet, or a VGG11 without batch
            norm, on the CPU engine, which always runs them on a few images at a time.
        shards: Processes that share every batch, e.g. :class:`trajmatch.parallel.Ranks`. They all
            call this function with the same arguments. Each runs its part of every batch, and sums
            are exchanged in every step of both passes. All get the results and gradients that a
            single process would get, up to the order of sums. ``augment`` must be None or a
            :class:`DsaReplay`, which draws for the whole batch.

    Returns:
        ``theta_N`` ``[P]``, or ``[len(steps), P]`` in the order of ``steps``. With
        ``return_state``, a pair of these parameters and the :class:`OptimiserState` after step
        ``N``; a call that continues from both gives the values and gradients of one longer call.
        Differentiable once in ``images``, floating labels, ``lr``, ``theta0`` and ``state``.

    Raises:
        ValueError: A shape, device, label, index or count does not fit (values of labels and
            indices are checked on the CPU only, to keep CUDA from waiting); ``state`` is of another
            optimiser or model; ``momentum`` and ``optimiser`` are both given; the model has no
            parameters to train; or ``micro_batch`` or ``shards`` would split batches of a model
            that mixes images, e.g. by batch norm in training mode.
        TypeError: A dtype or the kind of an argument is not supported.
        NotImplementedError: ``shards`` with an ``augment`` other than DSA; a call inside
            ``torch.func.jvp``, or on autograd inside ``torch.func.vmap``; in the backward pass, a
            model that is not twice differentiable.
        RuntimeError: In the backward pass, the gradient of a step (on the engine: its images)
            differs from the forward pass by more than ``4 sqrt(eps)`` times its norm, where ``eps``
            is the machine epsilon of the dtype.
    """
    given = (theta0, images, labels, lr, batches, loss, soft_labels, momentum, optimiser, state)
    settings = (return_state, loss_scale, steps, augment, tape_bytes, precise, exact)
    return _Call(model, *given, *settings, micro_batch, shards).result()


@public_operator
def unroll_together(model: nn.Module, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return ``[unroll(model, **call) for call in calls]``, computed side by side.

    On the engine, students with equal shapes and settings share the launches of its CUDA kernels;
    convolutions of cuDNN run one by one (:func:`trajmatch.ops.cuda_blocks`). This is meant for
    small students, which do not fill a GPU on their own. The students may differ in ``theta0``,
    ``images``, ``labels``, ``lr``, ``batches`` and the draws of a :class:`DsaReplay`. Results and
    gradients are those of :func:`unroll`, up to rounding. The ``tape_bytes`` of all students are
    added up.

    If one call cannot share launches, or shapes or settings differ, all run one after another, as
    always on the CPU. Calls cannot share on autograd; with ``micro_batch``, ``shards``, ``state``,
    ``return_state`` or an ``augment`` other than DSA; or with Adam, Nesterov momentum, weight decay
    or several step sizes.

    Args:
        model: As for :func:`unroll`.
        calls: The other arguments of each call of :func:`unroll`, by name.

    Returns:
        The results of the calls, in their order. Errors are those of :func:`unroll`.
    """
    given = [_Call(model, **call) for call in calls]
    kinds = [each.kind for each in given]
    if len(given) < 2 or None in kinds or kinds.count(kinds[0]) < len(kinds):
        return [each.result() for each in given]
    first, *_ = given
    names = ("theta0", "images", "labels", "lr")
    inputs = [torch.stack([getattr(each, name) for each in given]) for name in names]
    # Rows are ordered by step, then student, then image.
    indices = _by_step(each.flat.split(each.sizes) for each in given)
    rows = None if first.augment is None else _by_step(each.dsa_rows() for each in given)
    tape, keep = sum(each.tape_bytes for each in given), any(each.keep for each in given)
    thetas, _ = first.on_engine(inputs, indices, rows, tape, keep)
    return [each.chosen(own) for each, own in zip(given, thetas.unbind(1), strict=True)]


def _by_step(students: Iterable[Sequence[Tensor]]) -> Tensor:
    """Concatenate the tensors of all students, step by step."""
    return torch.cat([each for step in zip(*students, strict=True) for each in step])


@dataclass
class _Call:
    """One call of :func:`unroll`; its arguments, checked and converted."""

    model: nn.Module
    theta0: Tensor
    images: Tensor
    labels: Any
    lr: Any
    batches: ArrayLike | Sequence[ArrayLike]
    loss: Loss = "cross_entropy"
    soft_labels: str = "logits"
    momentum: float = 0.0
    optimiser: Any = None
    state: OptimiserState | None = None
    return_state: bool = False
    loss_scale: float = 1.0
    steps: Sequence[int] | None = None
    augment: Augment | None = None
    tape_bytes: int = 0
    precise: bool = False
    exact: bool = True
    micro_batch: int | None = None
    shards: Shards | None = None

    def __post_init__(self) -> None:
        expect, theta0, images = Expect("unroll"), self.theta0, self.images
        expect.that(self.tape_bytes >= 0, "tape_bytes", "be at least 0", self.tape_bytes)
        most = self.micro_batch
        expect.that(most is None or most >= 1, "micro_batch", "be at least 1", most)
        self.model = model = expect.model(self.model)
        expect.theta("theta0", theta0, model)
        self.network = engine_description(model, self.precise)
        expect.images(images, theta0, "theta0", self.network is not None)
        expect.loss(self.loss, ("cross_entropy", "mse"), self.soft_labels)
        self.labels = expect.labels(self.labels, images, theta0, self.loss, self.soft_labels)
        self.number = engine_loss(self.loss, self.soft_labels, self.labels)
        self.optimiser = optimiser = check_optimiser(expect, self.optimiser, self.momentum)
        check_state(expect, self.state, optimiser, theta0)
        self.flat, self.sizes = expect.batches(self.batches, theta0)
        steps, tensors = len(self.sizes), sum(1 for _ in model.parameters())
        self.lr = check_lr(expect, self.lr, theta0, steps, tensors)
        self.counts = [steps] if self.steps is None else expect.counts("steps", self.steps)
        expect.augment(self.augment)
        expect.that(len(self.counts) > 0, "steps", "have at least one entry", "none")
        for count in self.counts:
            expect.that(1 <= count <= steps, "steps", f"lie in 1..{steps}", count)
        # Both are None if batches stay whole.
        self.micro_batch = most if most is not None and max(self.sizes) > most else None
        self.shards = self.shards if self.shards is not None and self.shards.size > 1 else None
        self.whole = self.micro_batch is None and self.shards is None
        # True if the engine runs the whole loop as one operator.
        replayed = self.augment is None or isinstance(self.augment, DsaReplay)
        known = self.network is not None and self.number is not None
        self.one_operator = self.whole and known and replayed
        # Plain steps need no state in the adjoint, which halves the memory of the trajectory.
        self.plain = optimiser.plain and self.lr.dim() == 0 and self.state is None
        self.plain = self.plain and not self.return_state
        if self.state is not None and optimiser.state_rows > 0:
            self.memory = self.state.tensors
        else:
            # A new state, all zeros. SGD without momentum has no state vector, but its general step
            # always takes a buffer.
            rows = 0 if self.plain else max(optimiser.state_rows, 1)
            self.memory = theta0.new_zeros(rows, len(theta0))
        differentiable = (theta0, images, self.labels, self.lr, self.memory)
        self.keep = torch.is_grad_enabled() and any(each.requires_grad for each in differentiable)
        self.steps_done = 0 if self.state is None else self.state.steps

    @property
    def kind(self) -> Any:
        """Settings that students must have in common to share launches; None if this one cannot."""
        if not (self.one_operator and self.plain):
            return None
        tensors = (self.theta0, self.images, self.labels)
        shapes = [(each.shape, each.dtype, each.device) for each in tensors]
        settings = (self.network, self.number, self.optimiser, self.loss_scale, self.exact)
        return shapes, settings, self.sizes, self.counts, self.augment is None

    def dsa_rows(self) -> list[Tensor]:
        """Return the DSA parameters ``[B, 5]`` of each step."""
        assert isinstance(self.augment, DsaReplay)
        size = self.images.shape[2:]
        return [self.augment.dsa_parameters(i, n, *size) for i, n in enumerate(self.sizes)]

    def on_engine(
        self, inputs: Sequence[Tensor], indices: Tensor, dsa_rows: Any, tape_bytes: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the parameters ``[len(steps), P]`` and the state of this call, or of several.

        ``inputs`` are ``theta0``, images, labels and step sizes.
        """
        problem = (*inputs, self.memory, indices, self.sizes, self.counts)
        settings = (self.network, self.optimiser.numbers(), self.steps_done, self.number)
        rows = None if dsa_rows is None else dsa_rows.to(self.images.device)
        kept = (keep, tape_bytes, rows, self.exact)
        thetas, memory, *_ = operators.student_unroll(*problem, *settings, self.loss_scale, *kept)
        return thetas, memory

    def result(self) -> Any:
        """Run the call alone and return its result."""
        if self.one_operator:
            rows, lr = None if self.augment is None else torch.cat(self.dsa_rows()), self.lr
            # The operator takes step sizes [], [N, 1] or [N, T].
            if lr.dim() > 0:
                lr = lr.reshape(len(lr), -1).expand(len(self.sizes), -1)
            inputs = (self.theta0, self.images, self.labels, lr)
            thetas, memory = self.on_engine(inputs, self.flat, rows, self.tape_bytes, self.keep)
        else:
            thetas, memory = self.in_python()
        result = self.chosen(thetas)
        # Leave out the buffer of an SGD without momentum.
        if self.return_state:
            state = memory[: self.optimiser.state_rows]
            return result, OptimiserState(state, self.steps_done + len(self.sizes))
        return result

    def chosen(self, thetas: Tensor) -> Tensor:
        """Return all rows, or the only one if the call names no steps."""
        return thetas[0] if self.steps is None else thetas

    def in_python(self) -> tuple[Tensor, Tensor]:
        """Return parameters and state after a loop in Python."""
        expect, model, network = Expect("unroll"), self.model, self.network
        expect.indices(self.flat, len(self.images))
        student: Student
        if network is not None and self.number is not None:
            student, called = EngineStudent(network, self.loss_scale, self.number), None
        else:
            settings = (self.loss_scale, self.loss, False, self.soft_labels)
            student, called = AutogradStudent(model, *settings), model
        # Parts of a batch add up to the whole only if no layer mixes images. The engine's networks
        # mix images only by batch norm; other modules are tested on the images.
        argument = "shards" if self.micro_batch is None else "micro_batch"
        wanted = "be None for a network that mixes the images of a batch, as batch norm does"
        alone = self.whole or (
            batch_norm_channels(network) == 0
            if network is not None
            else treats_images_alone(model, self.theta0.detach(), self.images.detach())
        )
        expect.that(alone, argument, wanted, f"the network {type(model).__name__}")
        if self.micro_batch is not None:
            student = MicroBatches(student, self.micro_batch)
        rule = (self.optimiser, model, self.steps_done, self.theta0)
        updates = None if self.plain else Updates(*rule)
        how = (self.counts, self.optimiser, self.augment, self.exact, updates, self.keep)
        given = (student, Steps(self.flat.split(self.sizes), *how), called)
        loop = Loop(*given) if self.shards is None else ShardedLoop(self.shards, *given)
        # The outputs after these two are for the adjoint.
        tensors = (self.theta0, self.images, self.labels, self.lr, self.memory)
        thetas, memory, *_ = Unroll.apply(loop, *tensors)
        return thetas, memory


def tape_bytes(
    model: nn.Module,
    batch_sizes: Sequence[int],
    dtype: torch.dtype = torch.float32,
    precise: bool = False,
    device: torch.device | str = "cpu",
) -> int:
    """Return the value of ``tape_bytes`` that lets :func:`unroll` keep all steps' activations.

    ``batch_sizes`` has the number of images of each step; ``dtype`` (float32 or float64) and
    ``device`` are those of ``theta0``. The result is 0 for models that run on autograd instead of
    the engine: the backward pass recomputes all their steps.
    """
    expect = Expect("tape_bytes")
    batch_sizes = expect.counts("batch_sizes", batch_sizes)
    if (network := engine_description(expect.module(model), precise)) is None:
        return 0
    double, cuda = dtype == torch.float64, torch.device(device).type == "cuda"
    # With practically unlimited memory, every step has a tape.
    return _C.tape_elements(network, batch_sizes, 2**62, double, cuda) * (8 if double else 4)


def _fake(given: Any) -> tuple[Tensor, ...]:
    # The trajectory has one row per step, which holds theta and the vectors of the optimiser.
    theta, state = given.theta0, given.state
    rows, kept = 0, 0
    if given.keep_trajectory:
        rows, students = len(given.batch_sizes), len(theta) if theta.dim() == 2 else 1
        double, cuda = theta.dtype == torch.float64, theta.device.type == "cuda"
        tapes = (given.network, given.batch_sizes, given.tape_bytes, double, cuda, students)
        kept = _C.tape_elements(*tapes)
    row = theta.numel() + state.numel()
    shapes = ((len(given.steps), *theta.shape), state.shape, (rows, row), (kept,))
    return tuple(map(theta.new_empty, shapes))


def _fake_adjoint(given: Any) -> tuple[Tensor, ...]:
    labels = given.labels.shape if given.labels.is_floating_point() else (0,)
    thetas = given.grad_thetas.shape
    shapes = (thetas[1:], given.images.shape, labels, given.lr.shape, given.state.shape)
    return tuple(map(given.trajectory.new_empty, shapes))


_SAVED = "trajectory tapes images labels lr state batches augmentation"


def _backward(
    saved: Any, grad_thetas: Tensor | None, grad_state: Tensor | None, *_: None
) -> tuple[Tensor, ...]:
    if not saved.keep_trajectory:
        raise ValueError(
            "trajmatch::student_unroll: expected keep_trajectory to be true if a gradient is "
            "needed, but got false"
        )
    *tensors, augmentation = (getattr(saved, name) for name in _SAVED.split())
    # None if only the returned state is differentiated.
    if grad_thetas is None:
        grad_thetas = saved.state.new_zeros(len(saved.steps), saved.state.shape[1])
    names = "batch_sizes steps network optimiser steps_done loss loss_scale"
    choices = (getattr(saved, name) for name in names.split())
    return operators.student_unroll_adjoint(
        grad_thetas, grad_state, *tensors, *choices, augmentation, saved.exact
    )


register(
    "student_unroll",
    _fake,
    _backward,
    save=_SAVED,
    outputs="thetas state_out trajectory tapes",
    constant="trajectory tapes",
    materialize=False,  # zeros for the trajectory's gradient would double the memory
)
register("student_unroll_adjoint", _fake_adjoint, instead=by_reference("unroll"))
