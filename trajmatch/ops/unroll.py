"""Unrolled student steps, differentiated exactly in the memory of one step."""

from __future__ import annotations

from collections.abc import Sequence
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
from trajmatch.ops.registration import operators, register
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
    expect = Expect("unroll")
    expect.that(tape_bytes >= 0, "tape_bytes", "be at least 0", tape_bytes)
    fits = micro_batch is None or micro_batch >= 1
    expect.that(fits, "micro_batch", "be at least 1", micro_batch)
    model = expect.model(model)
    expect.theta("theta0", theta0, model)
    network = engine_description(model, precise)
    expect.images(images, theta0, "theta0", network is not None)
    expect.loss(loss, ("cross_entropy", "mse"), soft_labels)
    labels = expect.labels(labels, images, theta0, loss, soft_labels)
    number = engine_loss(loss, soft_labels, labels)
    optimiser = check_optimiser(expect, optimiser, momentum)
    check_state(expect, state, optimiser, theta0)
    flat, sizes = expect.batches(batches, theta0)
    lr = check_lr(expect, lr, theta0, len(sizes), sum(1 for _ in model.parameters()))
    counts = [len(sizes)] if steps is None else expect.counts("steps", steps)
    expect.augment(augment)
    expect.that(len(counts) > 0, "steps", "have at least one entry", "none")
    for count in counts:
        expect.that(1 <= count <= len(sizes), "steps", f"lie in 1..{len(sizes)}", count)
    # Both are None if batches stay whole.
    most = micro_batch if micro_batch is not None and max(sizes) > micro_batch else None
    sharing = shards if shards is not None and shards.size > 1 else None
    whole = most is None and sharing is None
    # Plain steps need no state in the adjoint, which halves the memory of the trajectory.
    plain = optimiser.plain and lr.dim() == 0 and state is None and not return_state
    given = (theta0, images, labels, lr)
    differentiable = given if state is None else (*given, state.tensors)
    keep = torch.is_grad_enabled() and any(each.requires_grad for each in differentiable)
    done = 0 if state is None else state.steps
    replayed = augment is None or isinstance(augment, DsaReplay)
    if state is not None and optimiser.state_rows > 0:
        memory = state.tensors
    else:
        # A new state, all zeros. SGD without momentum has no state vector, but its general step
        # always takes a buffer.
        memory = theta0.new_zeros(0 if plain else max(optimiser.state_rows, 1), len(theta0))
    # The engine runs the whole loop as one operator; otherwise the loop below is Python.
    if whole and network is not None and number is not None and replayed:
        rows = None
        if augment is not None:
            # DSA parameters [images in all batches, 5], in the order of the batches.
            assert isinstance(augment, DsaReplay)
            drawn = [augment.dsa_parameters(i, n, *images.shape[2:]) for i, n in enumerate(sizes)]
            rows = torch.cat(drawn).to(images.device)
        # The operator takes step sizes [], [N, 1] or [N, T].
        rates = lr if lr.dim() == 0 else lr.reshape(len(lr), -1).expand(len(sizes), -1)
        problem = (theta0, images, labels, rates, memory, flat, sizes, counts)
        kept = (keep, tape_bytes, rows, exact)
        choices = (network, optimiser.numbers(), done, number, loss_scale, *kept)
        thetas, memory, *_ = operators.student_unroll(*problem, *choices)
    else:
        expect.indices(flat, len(images))
        student: Student
        if network is not None and number is not None:
            student, called = EngineStudent(network, loss_scale, number), None
        else:
            student = AutogradStudent(model, loss_scale, loss, soft_labels=soft_labels)
            called = model
        # Parts of a batch add up to the whole only if no layer mixes images. The engine's networks
        # mix images only by batch norm; other modules are tested on the images.
        argument = "shards" if most is None else "micro_batch"
        wanted = "be None for a network that mixes the images of a batch, as batch norm does"
        alone = whole or (
            batch_norm_channels(network) == 0
            if network is not None
            else treats_images_alone(model, theta0.detach(), images.detach())
        )
        expect.that(alone, argument, wanted, f"the network {type(model).__name__}")
        if most is not None:
            student = MicroBatches(student, most)
        updates = None if plain else Updates(optimiser, model, done, theta0)
        settings = Steps(flat.split(sizes), counts, optimiser, augment, exact, updates, keep)
        if sharing is None:
            loop = Loop(student, settings, called)
        else:
            loop = ShardedLoop(sharing, student, settings, called)
        # The outputs after these two are for the adjoint.
        thetas, memory, *_ = Unroll.apply(loop, *given, memory)
    result = thetas[0] if steps is None else thetas
    # Leave out the buffer of an SGD without momentum.
    if return_state:
        return result, OptimiserState(memory[: optimiser.state_rows], done + len(sizes))
    return result


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
    network = engine_description(expect.module(model), precise)
    if network is None:
        return 0
    double, cuda = dtype == torch.float64, torch.device(device).type == "cuda"
    # With practically unlimited memory, every step has a tape.
    elements = _C.tape_elements(network, batch_sizes, 2**62, double, cuda)
    return elements * (8 if double else 4)


def _fake(given: Any) -> tuple[Tensor, ...]:
    # The trajectory has one row per step, which holds theta and the vectors of the optimiser.
    theta, (moments, size) = given.theta0, given.state.shape
    rows, kept = 0, 0
    if given.keep_trajectory:
        rows = len(given.batch_sizes)
        double, cuda = theta.dtype == torch.float64, theta.device.type == "cuda"
        kept = _C.tape_elements(given.network, given.batch_sizes, given.tape_bytes, double, cuda)
    shapes = ((len(given.steps), size), (moments, size), (rows, (1 + moments) * size), (kept,))
    return tuple(map(theta.new_empty, shapes))


def _fake_adjoint(given: Any) -> tuple[Tensor, ...]:
    labels = given.labels.shape if given.labels.is_floating_point() else (0,)
    states = given.state.shape
    shapes = (states[1:], given.images.shape, labels, given.lr.shape, states)
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
register(
    "student_unroll_adjoint",
    _fake_adjoint,
    instead="trajmatch.reference.unroll has derivatives of any order",
)
