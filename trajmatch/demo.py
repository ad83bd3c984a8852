"""The whole pipeline in two minutes: experts, distillation, evaluation and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from trajmatch.artifact import Artifact
    from trajmatch.distill.config import DistillConfig
    from trajmatch.evaluate.config import EvalConfig
    from trajmatch.experts.config import ExpertConfig
    from trajmatch.progress import ProgressLike

#: Opens a display of progress for one stage, given its units of work and its title.
Stages = Callable[[int, str], "AbstractContextManager[ProgressLike]"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Distil the shipped images to one per class, and compare them with random real ones."""

    out: Path
    """Folder for the experts, the distilled set, the pictures and summary.json."""
    data: str | None = None
    """Data set to use instead of the shipped fashion-mnist-mini."""
    num_experts: int = 4
    """Experts to train."""
    epochs: int = 6
    """Epochs of each expert."""
    width: int = 32
    """Channels of the ConvNet."""
    depth: int = 3
    """Blocks of the ConvNet."""
    ipc: int = 1
    """IPC: synthetic images per class."""
    iterations: int = 200
    """Outer iterations of the distillation."""
    student_steps: int = 20
    """N: student steps in one outer iteration."""
    expert_epochs: int = 2
    """M: epochs of the expert that the N student steps are to match."""
    max_start_epoch: int = 4
    """End of the start epochs s."""
    lr_img: float = 300.0
    """Learning rate of the synthetic images."""
    lr_lr: float = 1e-5
    """Learning rate of the step size eta."""
    lr_init: float = 0.02
    """First value of eta."""
    seeds: int = 3
    """Networks in each evaluation."""
    eval_epochs: int = 1000
    """Epochs that each of them is trained."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = False
    """Go on with an interrupted demo."""
    quiet: bool = False
    """Print nothing but errors."""

    @property
    def store(self) -> Path:
        """Where the experts go."""
        return self.out / "experts"

    @property
    def artifact(self) -> Path:
        """Where the distilled set goes."""
        return self.out / "distilled.safetensors"

    @property
    def initial_picture(self) -> Path:
        """Picture of the images that the distillation begins with."""
        return self.out / "initial.png"

    @property
    def distilled_picture(self) -> Path:
        """Picture of the distilled images."""
        return self.out / "distilled.png"

    @property
    def summary(self) -> Path:
        """Where the numbers go."""
        return self.out / "summary.json"

    def expert_config(self) -> ExpertConfig:
        """Configuration of the first stage."""
        from trajmatch.experts.config import ExpertConfig

        return ExpertConfig(
            out=self.store,
            data=self.data,
            num_experts=self.num_experts,
            epochs=self.epochs,
            width=self.width,
            depth=self.depth,
            seed=self.seed,
            resume=self.resume,
        )

    def distill_config(self) -> DistillConfig:
        """Configuration of the second stage."""
        from trajmatch.distill.config import DistillConfig

        return DistillConfig(
            experts=self.store,
            out=self.artifact,
            data=self.data,
            ipc=self.ipc,
            iterations=self.iterations,
            student_steps=self.student_steps,
            expert_epochs=self.expert_epochs,
            max_start_epoch=self.max_start_epoch,
            lr_img=self.lr_img,
            lr_lr=self.lr_lr,
            lr_init=self.lr_init,
            seed=self.seed,
            resume=self.resume,
        )

    def eval_config(self) -> EvalConfig:
        """Configuration of the third stage."""
        from trajmatch.evaluate.config import EvalConfig

        return EvalConfig(
            file=self.artifact,
            data=self.data,
            seeds=self.seeds,
            epochs=self.eval_epochs,
            seed=self.seed,
        )


def run_demo(config: DemoConfig, stages: Stages | None = None) -> dict[str, Any]:
    """Trains experts, distils, evaluates beside random real images, and draws pictures.

    Args:
        config: What to do, and in which folder.
        stages: Shows the progress of each stage; by default nothing does.

    Returns:
        The content of ``summary.json``: ``seconds`` of this call in all and ``stage_seconds`` of
        each stage; ``distilled`` and ``random_real``, each with ``mean``, ``std``, ``accuracies``
        and ``seeds``; ``improvement`` in points; ``protocol``, ``dataset``, ``images_per_class``.

    Raises:
        UserError: The folder cannot be written or holds an earlier demo, or a setting is wrong.
    """
    from trajmatch import artifact, files
    from trajmatch.distill.loop import distill
    from trajmatch.distill.problem import prepare
    from trajmatch.evaluate.distilled import evaluate_artifact
    from trajmatch.experts.train import train_experts

    if config.summary.exists() and not config.resume:
        raise UserError(f"{config.out} holds an earlier demo; give --out a new folder")
    files.check_writable(config.out)
    clock = _Clock(stages or _silent)

    with clock.stage("experts", config.num_experts * config.epochs) as progress:
        train_experts(config.expert_config(), progress)
    initial = prepare(config.distill_config()).initial_set()
    with clock.stage("distillation", config.iterations) as progress:
        distilled = distill(config.distill_config(), progress)
    with clock.stage("evaluation", 2 * config.seeds * (config.eval_epochs + 1)) as progress:
        scores = evaluate_artifact(config.eval_config(), progress)

    score = {"split": "test", "protocol": scores["protocol"], **scores["distilled"]}
    if score not in distilled.scores:  # it is there where a finished demo is resumed
        distilled = distilled.with_score(score)
        artifact.save(config.artifact, distilled)
    _draw(config.initial_picture, initial.images, distilled)
    _draw(config.distilled_picture, distilled.images, distilled)
    summary = {
        "seconds": clock.seconds,
        "stage_seconds": clock.stage_seconds,
        "dataset": distilled.dataset_name,
        "images_per_class": distilled.ipc,
        "random_real": scores["random_real"],
        "distilled": scores["distilled"],
        "improvement": scores["distilled"]["mean"] - scores["random_real"]["mean"],
        "protocol": scores["protocol"],
    }
    files.write_json(config.summary, summary)
    return summary


def table(summary: dict[str, Any]) -> str:
    """The accuracies of a summary as a table.

    Args:
        summary: What :func:`run_demo` returned.

    Returns:
        Lines without a line break after the last.
    """
    rows = [
        ("training set", "images", "test accuracy"),
        *(
            (name, f"{summary['images_per_class']} per class", _accuracy(summary[key]))
            for name, key in (("random real", "random_real"), ("distilled", "distilled"))
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class _Clock:
    """Times the stages and shows their progress."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._began = time.perf_counter()
        self.stage_seconds: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[ProgressLike]:
        began = time.perf_counter()
        with self._stages(total, title) as progress:
            yield progress
        self.stage_seconds[title] = time.perf_counter() - began


def _silent(total: int, title: str) -> AbstractContextManager[ProgressLike]:
    from trajmatch.progress import NoProgress

    return nullcontext(NoProgress())


def _draw(path: Path, images: Tensor, distilled: Artifact) -> None:
    from trajmatch import files, pictures

    picture = pictures.grid(
        images, distilled.hard_labels, distilled.mean, distilled.std, distilled.class_names
    )
    files.write_bytes(path, picture)


def _accuracy(score: dict[str, Any]) -> str:
    return f"{score['mean']:.1f} +- {score['std']:.1f} % ({score['seeds']} networks)"
