"""Outer loop of a distillation, from a new or interrupted run to the distilled set."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import astuple

import torch

from trajmatch import artifact, files, interruption, networks
from trajmatch.artifact import Artifact
from trajmatch.distill import checkpoint
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.gradients import Graph, gradients_for
from trajmatch.distill.guard import check_refusals, check_skips
from trajmatch.distill.image_snapshots import ImageSnapshots
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.memory_plan import Tell, WithinMemory, check_parts, choose, planned
from trajmatch.distill.metrics import Log, loggers_for, metrics_log
from trajmatch.distill.objectives import Plan
from trajmatch.distill.parallel import Division, check_division, check_in_step, start_same
from trajmatch.distill.parameters import leaves
from trajmatch.distill.problem import Problem, prepare
from trajmatch.distill.selection import evaluate_iterate, is_due
from trajmatch.distill.state import State
from trajmatch.errors import UserError, warn
from trajmatch.lock import locked
from trajmatch.parallel import ALONE, Ranks
from trajmatch.progress import NoProgress, ProgressLike
from trajmatch.schema import expect_config


def distill(
    config: DistillConfig,
    progress: ProgressLike | None = None,
    ranks: Ranks = ALONE,
    tell: Tell | None = None,
) -> Artifact:
    """Distil a data set and write the result.

    By default, the objective is trajectory matching (MTT, Cazenavette et al., CVPR 2022). A student
    starts from an expert's parameters after some epoch and trains on the synthetic images. The
    images and the student's step size are learned such that the student ends where the expert was
    a few epochs later. The gradient is exact through all student steps and is averaged over
    ``config.matches`` such students. For other objectives, see ``docs/methods.md``.

    On the CPU, runs with the same configuration, seed and number of threads write the same bytes,
    even if they are interrupted. Non-finite updates are never applied.

    Args:
        config: Settings and options.
        progress: Called after every outer iteration with the number of iterations done, ``loss``,
            ``step_size``, the last evaluation's ``accuracy`` in percent (or ``error``), and the
            number of updates ``dropped``, if any.
        ranks: Processes of the run (:func:`trajmatch.parallel.joined`). All of them call this
            function; rank 0 writes the files and evaluates.
        tell: Called on rank 0 before the first iteration, with a forecast of memory and time. The
            forecast comes from a trial of a few student steps, which also chooses the memory plan.
            If memory still runs out later, the run continues with a leaner plan.

    Returns:
        The result, also written to ``config.out``.

    Raises:
        UserError: An input is unusable, a result or checkpoint exists and ``config.resume`` is not
            set, another process writes to the same output, or too many updates in a row were
            refused or skipped. Files written earlier remain intact.
        Interrupted: ``config.max_time`` is up, or a signal arrived inside
            :func:`trajmatch.interruption.signals`. A checkpoint of the last iteration is saved.
    """
    expect_config("distill", config, DistillConfig)
    with networks.cuda_blocks(config.cuda_blocks), ExitStack() as stack:
        ranks.on_rank_0(lambda: _lock_output(config, stack))
        return _distill(config, progress or NoProgress(), ranks, tell)


def _distill(
    config: DistillConfig, progress: ProgressLike, ranks: Ranks, tell: Tell | None
) -> Artifact:
    ranks.on_rank_0(lambda: _check_output(config))
    problem = prepare(config)
    # With --resume, a finished run just returns its result.
    if ranks.on_rank_0(config.out.exists):
        return _finished(problem)
    check_parts(problem)
    state = _begin(problem)
    division = Division(ranks, config.parallel == "batch")
    # Ranks with different settings would soon wait for each other in different collectives.
    start_same(problem, state, ranks)
    check_division(problem, state, ranks)
    progress.update(state.iteration)
    compute = _computing(problem, state, division, tell)
    snapshots = ImageSnapshots(problem, state) if ranks.is_rank_0 else None
    # In this block, signals wait for _check_interruption, which runs when the state is consistent.
    with _log(problem, state, ranks) as log, _interruptible(problem, state, ranks):
        if is_due(config, state):  # resumed at a checkpoint whose evaluation was not done
            log(**evaluate_iterate(problem, state, ranks, compute.make_room))
        while state.iteration < config.iterations:
            _check_interruption(problem, ranks)
            began = time.perf_counter()
            numbers, fault = outer_iteration(problem, state, compute, division)
            log(**numbers, seconds=time.perf_counter() - began)
            if fault is not None:
                check_refusals(fault, state)
            elif config.skip_above is not None:
                check_skips(config.skip_above, numbers["loss"], state)
            if is_due(config, state):
                log(**evaluate_iterate(problem, state, ranks, compute.make_room))
            # Snapshot before checkpoint, so that an interruption in between loses no snapshot.
            if snapshots is not None:
                snapshots.take_if_due(state)
            if state.iteration % config.checkpoint_every == 0:
                check_in_step(state, ranks)  # never save a state that ranks disagree on
                if ranks.is_rank_0:
                    checkpoint.save(config.checkpoint_path, state, problem.identity)
            progress.update(state.iteration, loss=numbers["loss"], **_shown(problem, state))
    result = problem.artifact(state)
    check_in_step(state, ranks)
    # Write the result before removing the checkpoint, so that a crash in between loses nothing.
    if ranks.is_rank_0:
        artifact.save(config.out, result)
        config.checkpoint_path.unlink(missing_ok=True)
        if state.refusals and not state.applied:
            reasons = f"every update was refused; the log {config.log_path} says why"
            warn(f"{config.out} has the initial images: {reasons}")
    # No rank returns before the file exists.
    ranks.barrier()
    return result


def _computing(
    problem: Problem, state: State, division: Division, tell: Tell | None
) -> WithinMemory:
    """Return the gradient computation, with a memory plan that rank 0 chooses for all ranks."""
    shared, gradients = division.shares_steps, gradients_for(problem, division)
    # Only a CUDA graph runs matches side by side, and only those of its own rank.
    own = -(-problem.config.matches // division.ranks.size)
    plan = planned(problem, shared, own if isinstance(gradients, Graph) else 1)

    # `on_rank_0` broadcasts JSON values, so the plan travels as a tuple.
    def chosen() -> tuple[int | None, ...]:
        found = choose(problem, leaves(state.parameters, problem.device), plan)
        if tell is not None:
            tell(found)
        return astuple(found.plan)

    if state.iteration < problem.config.iterations:
        plan = Plan(*division.ranks.on_rank_0(chosen))
    return WithinMemory(gradients, problem, plan, alone=not shared)


def _log(problem: Problem, state: State, ranks: Ranks) -> AbstractContextManager[Log]:
    """Return the log, which only rank 0 writes."""
    if not ranks.is_rank_0:
        return nullcontext(lambda **numbers: None)
    loggers = loggers_for(problem, state.iteration)
    return metrics_log(problem.config.log_path, state.iteration, loggers)


def _check_interruption(problem: Problem, ranks: Ranks) -> None:
    """Raise Interrupted on all ranks if any rank was asked to stop."""
    stop = interruption.wish()
    # A signal may reach one rank only. The sum makes all ranks stop after the same iteration.
    asked = torch.tensor([float(stop is not None)], device=problem.device)
    ranks.sum_(asked)
    if asked.item():
        raise stop or interruption.Interrupted("a signal to another process", interruption.ENDED)


@contextmanager
def _interruptible(problem: Problem, state: State, ranks: Ranks) -> Iterator[None]:
    """Let requests to stop wait for ``interruption.check``; save a checkpoint if it raises one."""
    config = problem.config
    with interruption.time_limit(config.max_time), interruption.held():
        try:
            yield
        except interruption.Interrupted as stop:
            if ranks.is_rank_0:
                checkpoint.save(config.checkpoint_path, state, problem.identity)
            stop.kept = f"{config.checkpoint_path} has iteration {state.iteration}"
            raise


def _shown(problem: Problem, state: State) -> dict[str, float]:
    """Return the numbers for the progress display."""
    shown = {"step_size": state.step_size}
    if state.scores:
        measure = "error" if problem.dataset.loss == "mse" else "accuracy"
        shown[measure] = state.scores[-1]["mean"]
    if dropped := state.iteration - state.applied:
        shown["dropped"] = dropped
    return shown


def _lock_output(config: DistillConfig, stack: ExitStack) -> None:
    """Lock the checkpoint and the log until the stack closes."""
    # The checkpoint's name follows from --out, so its lock also protects artifact and snapshots.
    # Resolved paths are keys here, because locking one file twice would fail.
    written = {path.resolve(): path for path in (config.checkpoint_path, config.log_path)}
    for path in written.values():
        stack.enter_context(locked(path))


def _check_output(config: DistillConfig) -> None:
    """Raise UserError if the run would overwrite a file or cannot write one."""
    # --log is the only path that can collide with the others, which follow from --out.
    written = [config.out, config.checkpoint_path, config.log_path]
    if config.snapshots:
        written.append(config.snapshots_path)
    if len({path.resolve() for path in written}) < len(written):
        raise UserError(
            f"--log {config.log_path} is also the path of another output of this run; choose "
            "another"
        )
    for path in written:
        if path.is_dir():
            raise UserError(f"{path} is a folder, but the run would write a file there")
        if path.exists() and not config.resume:
            raise UserError(
                f"{path} already exists; add --resume to continue that run, remove it, or choose "
                "another --out"
            )
    artifact.warn_of_ending(config.out)
    for folder in {path.parent for path in written}:
        files.check_writable(folder)
        files.remove_leftovers(folder)


def _begin(problem: Problem) -> State:
    """Return the state from the checkpoint, or the initial state if there is none."""
    config = problem.config
    if not config.checkpoint_path.exists():
        return problem.initial_state()
    state = checkpoint.load(config.checkpoint_path, problem)
    if state.iteration > config.iterations:
        raise UserError(
            f"{config.checkpoint_path} is at iteration {state.iteration}, beyond --iterations "
            f"{config.iterations}; give at least {state.iteration}"
        )
    return state


def _finished(problem: Problem) -> Artifact:
    """Return the existing result; raise UserError if a run with other settings made it."""
    out = problem.config.out
    result = artifact.load(out)
    checkpoint.check_same_run(out, {**result.recipe, "seed": result.seed}, problem.identity)
    # The checkpoint is still there if the run was killed just after it wrote the result.
    problem.config.checkpoint_path.unlink(missing_ok=True)
    return result
