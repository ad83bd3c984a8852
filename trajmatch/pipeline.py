"""The whole pipeline in one call and one folder: experts, distillation, evaluation and report."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import artifact, files, interruption, networks, pictures
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.loop import distill
from trajmatch.distill.objectives.match_trajectory import segments_of
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError, as_user_error, warn
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.distilled import evaluate_artifact
from trajmatch.evaluate.scores import difference_error
from trajmatch.evaluate.sets import SETS
from trajmatch.experts.config import ConvNetSettings, ExpertConfig, kept_epochs
from trajmatch.experts.scores import path_beside
from trajmatch.experts.store import Store
from trajmatch.experts.train import train_experts
from trajmatch.lock import locked
from trajmatch.progress import ProgressLike, Stages, silent
from trajmatch.report.config import ReportConfig
from trajmatch.report.page import write_report
from trajmatch.run_folder import RunFolder
from trajmatch.schema import settings_of


@dataclass(frozen=True)
class Pipeline:
    """Configurations of the three stages of a run, and the folder they write to."""

    folder: RunFolder
    expert: ExpertConfig | None  # None: `distill` names existing experts or needs none
    distill: DistillConfig
    evaluate: EvalConfig
    command: str = ""  # command line for the report; empty for a call from Python


def as_far_as_read(expert: ExpertConfig, distill: DistillConfig) -> ExpertConfig:
    """Return a configuration that trains experts only to the last epoch that ``distill`` reads."""
    last = distill.last_epoch_read(kept_epochs(expert.keep, expert.epochs))
    return replace(expert, until_epoch=min(last, expert.epochs))


def run_pipeline(
    pipeline: Pipeline,
    stages: Stages = silent,
    before_distillation: Callable[[DistillConfig], None] | None = None,
) -> dict[str, Any]:
    """Train experts, distil, evaluate against random real images, draw pictures and write a report.

    ``before_distillation`` is called once the experts exist, e.g. to report their health. If the
    configurations of the first two stages have ``resume`` set, an interrupted run continues.

    Returns:
        Content of ``summary.json``: ``seconds`` of this call and ``stage_seconds``; ``distilled``,
        ``random_real`` and other requested baselines, each with ``mean``, ``std``, ``accuracies``
        (regression: ``errors``) and ``seeds``; ``sets``, with the size of each; ``robust``, if
        requested; ``improvement`` over random images in points (not for regression) and its
        standard error ``improvement_error``, due to the choice of test images and networks;
        ``protocol``, ``dataset``, ``training_images``, ``test_images``, ``images_per_class``;
        ``experts``: their ``number``, the test ``accuracies``, the last ``epoch`` trained and the
        planned number of ``epochs``; ``command``.

    Raises:
        UserError: The folder cannot be written, is locked or holds an earlier run, or a setting is
            wrong.
    """
    folder = pipeline.folder
    if folder.summary.exists() and not pipeline.distill.resume:
        raise UserError(f"{folder.path} holds an earlier run; give --out a new folder")
    _check_beginning(pipeline)
    experts, store = pipeline.expert, pipeline.distill.experts
    # The evaluation always resumes: its records are kept only until the summary is written.
    evaluate = replace(pipeline.evaluate, out=folder.evaluation, resume=True)
    began, stage_seconds = time.perf_counter(), {}

    @contextmanager
    def stage(title: str, total: int) -> Iterator[ProgressLike]:
        interruption.check()
        beginning = time.perf_counter()
        with stages(total, title) as progress:
            yield progress
        stage_seconds[title] = time.perf_counter() - beginning

    with locked(folder.path, inside=True):
        if experts is not None:
            with stage("experts", experts.num_experts * experts.trained_epochs) as progress:
                train_experts(experts, progress)
        if before_distillation is not None:
            before_distillation(pipeline.distill)
        with stage("distillation", pipeline.distill.iterations) as progress:
            distilled = distill(pipeline.distill, progress)
        soft = distilled.label_kind == "logit"
        with stage("evaluation", evaluate.total_rounds(soft)) as progress:
            scores = evaluate_artifact(evaluate, progress)

        score = {"split": "test", "protocol": scores["protocol"], **scores["distilled"]}
        # If a finished run is resumed, the distilled set already has the score.
        if score not in distilled.scores:
            distilled = distilled.with_score(score)
            artifact.save(folder.artifact, distilled)
        summary = {
            "seconds": time.perf_counter() - began,
            "stage_seconds": stage_seconds,
            "dataset": distilled.dataset_name,
            "images_per_class": distilled.ipc,
            "training_images": scores["dataset"]["training_images"],
            "test_images": scores["dataset"]["test_images"],
            **({} if store is None else {"experts": _about_experts(Store.open(store))}),
            **{name: scores[name] for name in SETS if scores[name] is not None},
            "sets": scores["sets"],
            **({"robust": scores["robust"]} if evaluate.robust else {}),
            "protocol": scores["protocol"],
            "command": pipeline.command,
        }
        if scores["random_real"] is not None and distilled.loss != "mse":
            both = scores["distilled"], scores["random_real"]
            summary["improvement"] = both[0]["mean"] - both[1]["mean"]
            summary["improvement_error"] = difference_error(summary["test_images"], *both)
        # The evaluation records only serve to resume, so drop them once the summary has the scores.
        files.write_json(folder.summary, summary)
        shutil.rmtree(folder.evaluation, ignore_errors=True)
        # Pictures and report come last: if they fail, the results are already on disk.
        _illustrate(pipeline, distilled)
        return summary


def _check_beginning(pipeline: Pipeline) -> None:
    """Raise UserError for mistakes that would otherwise end the run hours later."""
    folder, experts = pipeline.folder, pipeline.expert
    # An interrupted run leaves these two folders. Any other folder suggests a wrong --out, whose
    # files the run would overwrite.
    ours = {folder.store, folder.evaluation}
    there = folder.path.iterdir() if folder.path.is_dir() else ()
    foreign = sorted(path.name for path in there if path.is_dir() and path not in ours)
    if visible := [name for name in foreign if not name.startswith(".")]:
        raise UserError(
            f"{folder.path} is not the folder of a run: it holds the folder {visible[0]}; give "
            "--out a new folder"
        )
    if experts is not None and pipeline.distill.objective != "train-and-test":
        _, loss = segments_of(pipeline.distill, kept_epochs(experts.keep, experts.epochs))
        # The terms depend on the names of the parameters, which are the same for all image sizes.
        # So a model for small images is enough; on the meta device, it takes no memory.
        if experts.network == "convnet" and experts.depth <= 10:
            side = 32 if experts.pooling == "none" else 2 ** max(5, experts.depth)
            with as_user_error(), torch.device("meta"):
                model = networks.ConvNet(3, 10, side, **settings_of(experts, ConvNetSettings))
            loss.check(pipeline.distill.student_steps, networks.parameter_shapes(model))
        scores = pipeline.distill.scores or path_beside(folder.store)
        if pipeline.distill.init == "difficulty" and not scores.exists():
            raise UserError(f"there is no {scores}; --init difficulty needs --distill.scores FILE")
    pipeline.evaluate.training_sets(pipeline.distill.labels == "soft")
    # The data set is not read yet, so take sizes that every network accepts.
    for text in pipeline.evaluate.network:
        with as_user_error(f"--evaluate.network {text}: "):
            networks.specify(text, in_channels=3, num_classes=10, image_size=256)


def _illustrate(pipeline: Pipeline, distilled: artifact.Artifact) -> None:
    """Draw pictures and write the report; failures become warnings."""
    folder = pipeline.folder

    def draw(path: Path, images: Tensor) -> None:
        pixels = distilled.preprocessing.invert(images)
        shown = pictures.grid(pixels, distilled.hard_labels, distilled.class_names)
        files.write_bytes(path, shown)

    def draw_initial() -> None:
        draw(folder.initial_picture, prepare(pipeline.distill).initial_set().images)

    steps: dict[Path, Callable[[], object]] = {
        folder.initial_picture: draw_initial,
        folder.distilled_picture: lambda: draw(folder.distilled_picture, distilled.images),
        folder.report: lambda: write_report(ReportConfig(run=folder.path, out=folder.report)),
    }
    for path, write in steps.items():
        try:
            write()
        except Exception as error:
            why = f"{error}" or type(error).__name__
            warn(f"{path} could not be written: {why}; the results are complete")


def _about_experts(store: Store) -> dict[str, Any]:
    """Return the number of experts, and the test results of those that were tested."""
    metrics = [store.metrics(expert) for expert in range(store.num_experts)]
    return {
        "number": store.num_experts,
        "accuracies": [each["test_accuracy"] for each in metrics if "test_accuracy" in each],
        **({"errors": [each["test_error"] for each in metrics]} if store.loss == "mse" else {}),
        "epoch": store.trained_epochs,
        "epochs": store.course,
    }
