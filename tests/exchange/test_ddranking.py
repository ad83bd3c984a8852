"""DD-Ranking's evaluator, in an environment of its own, trains on what is exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import trajmatch
from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.data import ChannelNormalisation
from trajmatch.evaluate import Score
from trajmatch.evaluate.scores import robust_scores
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.convert import convert

CIFAR10 = ChannelNormalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

#: DD-Ranking has numbers of CIFAR-10 built in and downloads it; here it gets fifty images of its
#: classes: class k has a bright band at row 3 k.
EVALUATE = """
import json, sys
import numpy as np
import torch
from PIL import Image
from trajmatch._torchvision import torchvision

class Bands(torch.utils.data.Dataset):
    def __init__(self, root, train, download, transform):
        self.targets, self.transform = [index % 10 for index in range(50)], transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 80, (32, 32, 3), dtype=np.uint8)
        label = self.targets[index]
        pixels[3 * label : 3 * label + 3] += 150
        return self.transform(Image.fromarray(pixels)), label

torchvision.datasets.CIFAR10 = Bands
from ddranking.metrics import LabelRobustScoreHard, hard_label
from ddranking.utils import REAL_DATA_ACC_CACHE

REAL_DATA_ACC_CACHE["CIFAR10-ConvNet-3"] = 100.0  # of the whole real set, which it lacks
# Release 0.2.0 adds every score to its list twice, and then cannot make a table of the lists.
hard_label.save_results = lambda results, path: None
folder = sys.argv[1]
images, labels, lr = (
    torch.load(f"{folder}/{name}.pt", weights_only=True) for name in ("images", "labels", "lr")
)
evaluator = LabelRobustScoreHard(
    dataset="CIFAR10", ipc=1, model_name="ConvNet-3", data_aug_func="none", num_eval=1,
    num_epochs=10, step_size=5, num_workers=0, device="cpu", save_path=f"{folder}/scores.csv",
    random_data_path=f"{folder}/random",
)
scores = evaluator.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=lr)
print(json.dumps({name: float(value) for name, value in scores.items()}))
"""

#: Its scores of accuracies that are given and not measured, as fractions: whole real set, distilled
#: images with hard labels, with their own, random images; and the last two without augmentation.
SCORE = """
import json, sys
import trajmatch._torchvision
from ddranking.metrics import AugmentationRobustScore, LabelRobustScoreSoft, aug_robust, soft_label

whole, hard, own, rand, own_plain, rand_plain = map(float, sys.argv[1:])

def evaluator(kind, module, **helpers):
    module.save_results = lambda results, path: None
    made = kind.__new__(kind)  # without the data set that it would download
    vars(made).update(
        num_eval=1, ipc=1, num_classes=2, rank=0, use_dist=False, save_path=None,
        eval_full_data=True, label_type="soft", soft_label_mode="S", **helpers
    )
    return made.compute_metrics(image_tensor=0, soft_labels=0, syn_lr=0.1)

def of_random(image_tensor):
    return isinstance(image_tensor, str)

label = evaluator(
    LabelRobustScoreSoft, soft_label,
    _compute_hard_label_metrics_helper=lambda mode, **_: (whole if mode == "real" else hard, 0),
    _compute_soft_label_metrics_helper=lambda image_tensor, **_: (
        rand if of_random(image_tensor) else own, 0
    ),
    _get_random_data_helper=lambda eval_iter: (None, "random", None),
)
augmentation = evaluator(
    AugmentationRobustScore, aug_robust,
    _compute_with_aug_metrics_helper=lambda image_tensor, **_: (
        rand if of_random(image_tensor) else own, 0
    ),
    _compute_without_aug_metrics_helper=lambda image_tensor, **_: (
        rand_plain if of_random(image_tensor) else own_plain, 0
    ),
    _get_random_data_helper=lambda eval_iter: (None, "random", None, None),
)
print(json.dumps({name: float(value) for name, value in {**label, **augmentation}.items()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter that has the packages of this one, and the evaluator."""
    folder = tmp_path_factory.mktemp("ddranking")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # The second is another folder where the package is installed in its source folder.
    ours = [sysconfig.get_path("purelib"), str(Path(trajmatch.__file__).parents[1])]
    (Path(paths["purelib"]) / "ours.pth").write_text("\n".join(ours) + "\n")
    # Its own pins (numpy below 2, scipy below 1.16) would replace what is installed.
    for packages in (["timm", "kornia", "pandas", "tqdm"], ["--no-deps", "ddranking==0.2.0"]):
        command = [interpreter, "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"ddranking cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    yield interpreter
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_evaluator_trains_on_a_converted_set(python: Path, tmp_path: Path) -> None:
    pixels = torch.randint(0, 80, (10, 3, 32, 32), dtype=torch.uint8)
    for label in range(10):
        pixels[label, :, 3 * label : 3 * label + 3] += 150
    distilled = Artifact(
        images=CIFAR10.apply(pixels),
        labels=torch.arange(10),
        label_kind="index",
        lr=0.05,
        mean=CIFAR10.mean,
        std=CIFAR10.std,
        dsa="none",
        network=networks.specify("convnet", 3, 10, 32),
        class_names=tuple(map(str, range(10))),
        dataset_name="cifar10",
        dataset_fingerprint="0",
        ipc=1,
        recipe={},
        seed=0,
        versions={},
    )
    artifact.save(tmp_path / "d.safetensors", distilled)
    convert(ConvertConfig(source=tmp_path / "d.safetensors", out=tmp_path / "theirs"))
    command = [python, "-c", EVALUATE, tmp_path / "theirs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert 100 - scores["hard_label_recovery_mean"] > 50, scores


@pytest.mark.slow
def test_robust_scores_are_those_of_its_formulas(python: Path, tmp_path: Path) -> None:
    of = {
        "whole_real": 84.8,
        "distilled_hard": 31.0,
        "distilled": 36.8,
        "random_real_soft": 19.2,
        "distilled_plain": 30.0,
        "random_real_plain": 17.5,
    }
    ours = robust_scores({name: Score((value,), {}) for name, value in of.items()}, soft=True)
    command = [python, "-c", SCORE, *(str(value / 100) for value in of.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert ours is not None
    for name, their_name, scale in (
        ("hard_label_recovery", "hard_label_recovery", 100),
        ("improvement_over_random", "improvement_over_random", 100),
        ("improvement_without_augmentation", "without_aug_scores", 100),
        ("label_robust_score", "label_robust_score", 1),
        ("augmentation_robust_score", "augmentation_robust_score", 1),
    ):
        assert ours[name]["mean"] == pytest.approx(scale * theirs[f"{their_name}_mean"], rel=1e-12)
