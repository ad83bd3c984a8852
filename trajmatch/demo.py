"""The whole pipeline in two minutes: experts, distillation, evaluation and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trajmatch.distill.config import DistillConfig
from trajmatch.evaluate.config import EvalConfig
from trajmatch.experts.config import ExpertConfig
from trajmatch.pipeline import Pipeline, run_pipeline
from trajmatch.progress import Stages, silent
from trajmatch.run_folder import RunFolder
from trajmatch.schema import Settings


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """Distil the shipped images to one per class, and compare them with random real ones."""

    out: Path
    """Folder for the experts, the distilled set, the pictures, summary.json and report.html."""
    data: str | None = None
    """Data set to use instead of the shipped fashion-mnist-mini."""
    num_experts: int = 4
    """Experts to train (MTT: num_experts)."""
    epochs: int = 6
    """Epochs of each expert (MTT: train_epochs)."""
    width: int = 32
    """Channels of the ConvNet."""
    depth: int = 3
    """Blocks of the ConvNet."""
    ipc: int = 1
    """IPC: synthetic images per class."""
    iterations: int = 200
    """Outer iterations of the distillation (MTT: Iteration)."""
    student_steps: int = 20
    """N: student steps in one outer iteration."""
    expert_epochs: int = 2
    """M: epochs of the expert that the N student steps are to match."""
    max_start_epoch: int = 4
    """End of the start epochs s."""
    lr_img: float = 300.0
    """Learning rate of the synthetic images (MTT: lr_img)."""
    lr_lr: float = 1e-5
    """Learning rate of the step size eta (MTT: lr_lr)."""
    lr_init: float = 0.02
    """First value of eta."""
    seeds: int = 3
    """Networks in each evaluation (MTT: num_eval)."""
    eval_epochs: int = 1000
    """Epochs that each of them is trained (MTT: epoch_eval_train)."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    resume: bool = False
    """Go on with an interrupted demo."""
    quiet: bool = False
    """Print nothing but errors."""

    @property
    def folder(self) -> RunFolder:
        """Where everything goes."""
        return RunFolder(self.out)

    def pipeline(self) -> Pipeline:
        """The stages in full."""
        folder = self.folder
        expert = ExpertConfig(
            out=folder.store,
            data=self.data,
            num_experts=self.num_experts,
            epochs=self.epochs,
            width=self.width,
            depth=self.depth,
            seed=self.seed,
            device=self.device,
            resume=self.resume,
        )
        distill = DistillConfig(
            experts=folder.store,
            out=folder.artifact,
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
            device=self.device,
            resume=self.resume,
        )
        evaluate = EvalConfig(
            file=folder.artifact,
            data=self.data,
            seeds=self.seeds,
            epochs=self.eval_epochs,
            seed=self.seed,
            device=self.device,
        )
        return Pipeline(folder, expert, distill, evaluate)


def run_demo(config: DemoConfig, stages: Stages = silent, command: str = "") -> dict[str, Any]:
    """Run the stages of a demo; see :func:`trajmatch.pipeline.run_pipeline`.

    Args:
        config: What to do, and in which folder.
        stages: Shows the progress of each stage; by default nothing does.
        command: What was typed, for the report.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: The folder cannot be written or holds an earlier run, or a setting is wrong.
    """
    return run_pipeline(replace(config.pipeline(), command=command), stages)
