"""Many student steps, differentiated exactly in the memory of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch._extension import _C
from trajmatch.networks.differentiable import treats_images_alone
from trajmatch.networks.engine import engine_description
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
    """Parameters after ``N`` steps of a student on its synthetic set (MTT, section 3.2).

    ``theta_{t+1} = theta_t - lr b_t``, ``b_t = momentum b_{t-1} + loss_scale * gradient`` of the
    student's loss at ``theta_t`` on ``A_t(images[batches[t]])``; ``optimiser`` makes other steps of
    the same gradient. The gradient of the result is exact: the adjoint walks the steps backwards
    and recomputes one at a time, so that memory is one step's activations and ``N`` parameter
    vectors (``2 N`` for SGD with a state, Nesterov momentum, weight decay or several learning
    rates, ``3 N`` for Adam), whatever ``N`` is. A step is recomputed in the state that it first ran
    in: mode and buffers of the model, autocast, and the global random generators of Python, NumPy
    and PyTorch, so that dropout is differentiated with its masks. A step that does not come out the
    same all the same, to ``4 sqrt(eps)`` of the norm of its gradient, is an error.

    For a network of the engine's (:func:`trajmatch.ops.engine_for`), without ``augment`` or with
    DSA, the whole loop and its adjoint are one operator each. With another ``augment`` the steps
    are operators and the loop is Python; other modules run eagerly on autograd, one step's graph at
    a time.

    Args:
        model: The student; any twice differentiable module, in the mode (training or evaluation)
            that it is in: in training mode batch norm uses, and is differentiated through, the
            statistics of each batch. Its own parameters and buffers are not changed. Frozen
            parameters (``requires_grad=False``) are constants: they stay as they are in
            ``theta0``. A module that ``torch.compile`` made runs without being compiled.
        theta0: Parameters to begin from. ``[P]``, float32 or float64.
        images: The synthetic images. ``[n, C, H, W]``, dtype and device of ``theta0``. Modules on
            autograd take inputs of any shape ``[n, ...]``, and tokens (int64 or int32), which have
            no gradient.
        labels: Class indices ``[n]`` (int64), soft labels ``[n, K]``, or targets ``[n, ...]``; a
            tensor, array or list.
        lr: Step size. A number, or a tensor with dtype and device of ``theta0`` (or an array or
            list): ``[]``, one per step ``[N]``, or one per step and parameter tensor, in the
            order of ``model.parameters()``, ``[N, T]``, or ``[1, T]`` for the same in all steps.
        batches: Indices into ``images``, int64 on the device of ``theta0``: ``[N, B]``, or a
            sequence of ``N`` one-dimensional tensors of any length. Arrays and lists are taken too.
        loss: ``"cross_entropy"``, ``"mse"`` or a function, as for :func:`trajmatch.ops.gradient`,
            which says what labels each takes. With ``micro_batch`` or ``shards`` the function gets
            a part of the batch at a time, so it must be a mean of terms of single images.
        soft_labels: ``"logits"`` or ``"probabilities"``, as for :func:`trajmatch.ops.gradient`.
        momentum: Heavy-ball factor of the student's steps (AST); short for
            ``optimiser=SGD(momentum)``.
        optimiser: A :class:`trajmatch.ops.SGD` or :class:`trajmatch.ops.Adam`, with the formulas of
            ``torch.optim``. Frozen parameters stay where they are, weight decay or not.
        state: State of the optimiser before the first step, as an earlier call returned it; None:
            that of a new optimiser.
        return_state: True to return the state after the last step as well.
        loss_scale: Factor of the student's loss (AST's balance ``kappa``), not of weight decay.
        steps: Counts of steps done, 1 to ``N``, after which parameters are returned.
        augment: Maps (images ``[B, C, H, W]`` of a batch, step) to images, differentiably. It is
            called again in the backward pass, with the global random generators as they were, and
            must then do the same. A :class:`DsaReplay` on the engine is asked for its parameters
            instead, once.
        tape_bytes: Memory in bytes that may be spent on activations kept for the adjoint. The
            engine then keeps the last steps' activations, as many as fit, and need not recompute
            them (``docs/performance.md`` has both times); other networks keep none.
        precise: As for :func:`trajmatch.ops.gradient`.
        exact: False leaves out how the gradients of later steps depend on earlier ones (the
            Hessians; the optimiser's state and weight decay are still followed), so that only the
            direct share of each step remains. This is the gradient of TESLA (Cui et al., ICML
            2023), an approximation that differs from the exact one in direction and length; it
            costs the same here. The parameters returned are the same.
        micro_batch: Images that go through the network at once, if a batch has more: the same
            gradient, up to the order of sums, in the memory of that many images. The loop then is
            Python, and saves nothing on the CPU engine, which takes a few images at a time anyway.
        shards: Processes that share every batch, e.g. a :class:`trajmatch.parallel.Ranks`. All of
            them call this with the same arguments; each takes a part of every batch, and the sums
            over the parts are exchanged in every step, forward and in the adjoint. All get the same
            results and gradients, equal to one process up to the order of sums. The loop is Python
            then, and keeps no tape; ``augment`` must be None or a :class:`DsaReplay`, which is
            drawn for the whole batch.

    Returns:
        ``theta_N`` ``[P]``, or ``[len(steps), P]`` in the order of ``steps``; with ``return_state``
        the pair of it and the :class:`OptimiserState` after step ``N``. Differentiable once in
        ``images``, floating labels, ``lr``, ``theta0`` and ``state``. Two calls, the second from
        the parameters and the state of the first, have the values and gradients of one.

    Raises:
        ValueError: A shape, device, label, index or count does not fit, ``state`` is of another
            optimiser or model, ``momentum`` is given beside ``optimiser``, or the model treats
            images of a batch together (batch norm in training mode) where ``micro_batch`` or
            ``shards`` would part them, or has no parameters to train. Values of labels and indices
            are looked at on the CPU only: on CUDA that would wait for the device.
        TypeError: A dtype or the kind of an argument is not supported.
        NotImplementedError: With ``shards``, ``augment`` is another function; or the call is inside
            of ``torch.func.jvp``, or on autograd inside of ``torch.func.vmap``. In the backward
            pass: the model is not twice differentiable.
        RuntimeError: In the backward pass: a step does not come out as in the forward pass.
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
    plain = optimiser.plain and lr.dim() == 0 and state is None and not return_state
    given = (theta0, images, labels, lr)
    differentiable = given if state is None else (*given, state.tensors)
    keep = torch.is_grad_enabled() and any(each.requires_grad for each in differentiable)
    done = 0 if state is None else state.steps
    replayed = augment is None or isinstance(augment, DsaReplay)
    if state is not None and optimiser.state_rows > 0:
        memory = state.tensors
    else:  # a step of SGD has a buffer, whatever the momentum
        memory = theta0.new_zeros(0 if plain else max(optimiser.state_rows, 1), len(theta0))
    if whole and network is not None and number is not None and replayed:
        rows = None
        if augment is not None:  # of all steps' images, in the order of the batches
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
        alone = whole or treats_images_alone(model, theta0.detach(), images.detach())
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
    """Memory in bytes that :func:`unroll` fills with the activations of all its steps.

    Args:
        model: The student.
        batch_sizes: Images in each step.
        dtype: float32 or float64.
        precise: As for :func:`unroll`.
        device: Where it runs.

    Returns:
        The ``tape_bytes`` of :func:`unroll` with which it keeps every step's activations; 0 for
        modules that run on autograd, which keep none.
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
    materialize=False,  # zeros for the trajectory would double the memory
)
register(
    "student_unroll_adjoint",
    _fake_adjoint,
    instead="trajmatch.reference.unroll has derivatives of any order",
)
