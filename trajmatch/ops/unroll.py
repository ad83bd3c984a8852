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

    ``theta_{t+1} = theta_t - lr b_t`` with ``b_t = momentum b_{t-1} + loss_scale * gradient``, the
    gradient of the loss at ``theta_t`` on ``A_t(images[batches[t]])``; ``optimiser`` replaces this
    step rule. Gradients are exact: the adjoint walks the steps backwards and recomputes one at a
    time. Memory is one step's activations plus ``N`` parameter vectors (``2 N`` for SGD with a
    state, Nesterov momentum, weight decay or several learning rates; ``3 N`` for Adam). The
    recomputation restores the model's mode and buffers, autocast and the global random generators
    of Python, NumPy and PyTorch, so dropout keeps its masks. If a step still differs, by more than
    ``4 sqrt(eps)`` of its gradient's norm, an error is raised.

    On the engine (:func:`trajmatch.ops.engine_for`), without ``augment`` or with DSA, the whole
    loop is one operator and its adjoint another. With another ``augment`` the loop is Python over
    engine operators. Other modules run eagerly on autograd, one step's graph at a time.

    Args:
        model: The student: any twice differentiable module, used in its current mode. In training
            mode batch norm uses, and is differentiated through, the statistics of each batch. The
            module's own parameters and buffers are not changed. Frozen parameters
            (``requires_grad=False``) keep their values in ``theta0``, even with weight decay. A
            compiled module runs uncompiled.
        theta0: Parameters to start from. ``[P]``, float32 or float64.
        images: Synthetic images ``[n, C, H, W]``, dtype and device of ``theta0``. Modules on
            autograd take inputs ``[n, ...]``, and tokens (int64 or int32), which have no gradient.
        labels: Class indices ``[n]`` (int64), soft labels ``[n, K]`` or targets ``[n, ...]``; a
            tensor, array or list.
        lr: Step size: a number, or a tensor (or array or list) with dtype and device of ``theta0``:
            ``[]``, per step ``[N]``, per step and parameter tensor ``[N, T]``, in the order of
            ``model.parameters()``, or ``[1, T]``, the same in all steps.
        batches: Indices into ``images``, int64 on the device of ``theta0``: ``[N, B]``, or a
            sequence of ``N`` vectors of any length. Arrays and lists are accepted.
        loss: ``"cross_entropy"``, ``"mse"`` or a function, with labels as for
            :func:`trajmatch.ops.gradient`. With ``micro_batch`` or ``shards`` a function gets parts
            of the batch, so it must be a mean of terms of single images.
        soft_labels: As for :func:`trajmatch.ops.gradient`.
        momentum: Heavy-ball factor (AST); short for ``optimiser=SGD(momentum)``.
        optimiser: :class:`trajmatch.ops.SGD` or :class:`trajmatch.ops.Adam`, as in ``torch.optim``.
        state: Optimiser state before the first step, as returned by an earlier call; None: new.
        return_state: True to return the state after the last step as well.
        loss_scale: Factor of the student's loss (AST's balance ``kappa``), not of weight decay.
        steps: Numbers of steps, 1 to ``N``, after which parameters are returned.
        augment: Differentiable map from (images ``[B, C, H, W]``, step) to images. The backward
            pass calls it again, with the global random generators restored, and needs the same
            result. On the engine a :class:`DsaReplay` is asked once for its parameters instead.
        tape_bytes: Memory in bytes for activations kept for the adjoint. The engine keeps those of
            the last steps, as many as fit, and does not recompute them (times in
            ``docs/performance.md``); other networks keep none.
        precise: As for :func:`trajmatch.ops.gradient`.
        exact: False to ignore how the gradients of later steps depend on earlier ones (the
            Hessians), but not optimiser state and weight decay. The result is TESLA's approximate
            gradient (Cui et al., ICML 2023), with another direction and length, at the same cost.
            The returned parameters are the same.
        micro_batch: Largest number of images that go through the network at once. The gradient is
            the same up to the order of sums; memory is for that many images. The loop is then
            Python. This saves nothing on the CPU engine, which takes a few images at a time anyway.
        shards: Processes that share every batch, e.g. :class:`trajmatch.parallel.Ranks`. All call
            this function with the same arguments; each takes a part of every batch, and sums are
            exchanged in every step of both passes. All get the same results and gradients, equal to
            one process up to the order of sums. The loop is then Python and keeps no tape;
            ``augment`` must be None or a :class:`DsaReplay`, which is drawn for the whole batch.

    Returns:
        ``theta_N`` ``[P]``, or ``[len(steps), P]`` in the order of ``steps``. With
        ``return_state``, a pair with the :class:`OptimiserState` after step ``N``; continuing from
        both gives the values and gradients of one longer call. Differentiable once in ``images``,
        floating labels, ``lr``, ``theta0`` and ``state``.

    Raises:
        ValueError: A shape, device, label, index or count does not fit (values of labels and
            indices are checked on the CPU only, as CUDA would have to wait); ``state`` is of
            another optimiser or model; ``momentum`` and ``optimiser`` are both given; the model has
            no parameters to train; or ``micro_batch`` or ``shards`` would split batches for a model
            that mixes images, such as batch norm in training mode.
        TypeError: A dtype or the kind of an argument is not supported.
        NotImplementedError: ``shards`` with an ``augment`` other than DSA; a call inside
            ``torch.func.jvp``, or on autograd inside ``torch.func.vmap``; in the backward pass, a
            model that is not twice differentiable.
        RuntimeError: In the backward pass: a step differs from the forward pass.
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
    expect.that(len(counts) > 0, "steps", "name at least one count of steps", "none")
    for count in counts:
        expect.that(1 <= count <= len(sizes), "steps", f"lie in 1..{len(sizes)}", count)
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
    else:  # sgd_step has a buffer for any momentum
        memory = theta0.new_zeros(0 if plain else max(optimiser.state_rows, 1), len(theta0))
    # The engine runs the whole loop as one operator; otherwise the loop below is Python.
    if whole and network is not None and number is not None and replayed:
        rows = None
        if augment is not None:  # one row per image, in the order of the batches
            assert isinstance(augment, DsaReplay)
            drawn = [augment.dsa_parameters(i, n, *images.shape[2:]) for i, n in enumerate(sizes)]
            rows = torch.cat(drawn).to(images.device)
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
        argument = "shards" if most is None else "micro_batch"
        wanted = (
            "be None for a network whose logits of an image depend on the others of its batch, as "
            "batch norm's do"
        )
        alone = whole or (
            batch_norm_channels(network) == 0
            if network is not None
            else treats_images_alone(model, theta0.detach(), images.detach())
        )
        expect.that(alone, argument, wanted, type(model).__name__)
        if most is not None:
            student = MicroBatches(student, most)
        updates = None if plain else Updates(optimiser, model, done, theta0)
        settings = Steps(flat.split(sizes), counts, optimiser, augment, exact, updates, keep)
        if sharing is None:
            loop = Loop(student, settings, called)
        else:
            loop = ShardedLoop(sharing, student, settings, called)
        thetas, memory, *_ = Unroll.apply(loop, *given, memory)
    result = thetas[0] if steps is None else thetas
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
    """Return the ``tape_bytes`` of :func:`unroll` that hold the activations of all its steps.

    Args:
        model: The student.
        batch_sizes: Number of images in each step.
        dtype: float32 or float64.
        precise: As for :func:`unroll`.
        device: Device of the unroll.

    Returns:
        Bytes; 0 for modules that run on autograd, which keep no activations.
    """
    expect = Expect("tape_bytes")
    batch_sizes = expect.counts("batch_sizes", batch_sizes)
    network = engine_description(expect.module(model), precise)
    if network is None:
        return 0
    double, cuda = dtype == torch.float64, torch.device(device).type == "cuda"
    elements = _C.tape_elements(network, batch_sizes, 2**62, double, cuda)
    return elements * (8 if double else 4)


def _fake(given: Any) -> tuple[Tensor, ...]:
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
            "trajmatch::student_unroll: expected keep_trajectory to be true where a gradient is "
            "needed, but got false"
        )
    *tensors, augmentation = (getattr(saved, name) for name in _SAVED.split())
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
