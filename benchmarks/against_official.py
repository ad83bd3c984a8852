"""The programs that MTT and DATM published, unchanged, beside trajmatch on the same experts.

    git clone https://github.com/GeorgeCazenavette/mtt-distillation
    trajmatch expert --data cifar10:ROOT --width 32 --num-experts 2 --epochs 6 --out experts
    python benchmarks/against_official.py mtt-distillation --experts experts --out mtt.json

The checkout runs behind stand-ins for wandb, kornia, yacs and its data (``official/``), which it
gets as the experts saw them. DATM is compared in the same way, by the path of its checkout.

First both compute the same in float64: trajmatch repeats each draw of the first outer iterations
(expert, start epoch, batches, augmentation) and of one evaluation. Then each runs on its own in
float32, for losses, seconds, and the accuracy of both sets in both evaluations.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest import mock

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench import facts
from bench.agreement import relative
from bench.program import parser, program
from official.runs import evaluate_by_program, program_of, run_program
from torch import Tensor, nn

from trajmatch import files, networks, ops, training
from trajmatch.data import Dataset
from trajmatch.data.sources import absolute_uri
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.parameters import SGD, OuterParameter
from trajmatch.errors import UserError
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.convert import convert
from trajmatch.experts import Store
from trajmatch.inference import accuracy
from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed

#: Settings of both sides: one image per class, windows for experts of few epochs.
SETTINGS = {
    "ipc": 1,
    "syn_steps": 20,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "lr_img": 100.0,
    "lr_lr": 1e-5,
    "lr_teacher": 0.01,
}
#: Images in a student step where draws are repeated: fewer than the set has, so that order matters.
#: Otherwise a step takes the whole set.
EXACT_BATCH = 4
#: Largest relative difference in float64 that counts as the same computation.
EXACT = 1e-9


@program
def main(argv: Sequence[str] | None) -> int:
    """Compare, print the record and write it; 1 if the two compute different numbers."""
    arguments = parser(__doc__)
    arguments.add_argument("checkout", type=Path, help="folder of the published program")
    arguments.add_argument("--experts", type=Path, required=True, help="store of ConvNet experts")
    arguments.add_argument("--data", help="their data set, if it is elsewhere now")
    arguments.add_argument("--iterations", type=int, default=200, help="of each run on its own")
    arguments.add_argument("--exact-iterations", type=int, default=5, help="repeated in float64")
    arguments.add_argument("--epochs", type=int, default=300, help="of an evaluation")
    arguments.add_argument("--networks", type=int, default=3, help="of an evaluation")
    given = arguments.parse_args(argv)
    if given.quick:
        given.iterations, given.exact_iterations, given.epochs, given.networks = 4, 2, 4, 1
    store = Store.open(given.experts)
    pair = Pair(given.checkout, store, given.data, model_name(store))
    with tempfile.TemporaryDirectory() as folder:
        pair.write_buffers(Path(folder))
        exact = pair.exact(Path(folder), given.exact_iterations, min(given.epochs, 20))
        course = pair.course(Path(folder), given.iterations, given.networks, given.epochs)
    record = {
        "program": program_of(given.checkout).name,
        "settings": SETTINGS,
        **facts.machine("cpu"),
        **facts.origin(),
        "exact": exact,
        "course": course,
    }
    print(as_text(record))
    if given.out is not None:
        files.write_json(given.out, record)
    return int(max(exact["differences"].values()) > EXACT)


def model_name(store: Store) -> str:
    """Return the published programs' name of the experts' network.

    Raises:
        UserError: They have no name for it.
    """
    spec = store.manifest["network"]
    for width in (32, 64, 128, 256):
        if spec == networks.specify(f"convnet:width={width}", 3, 10, 32):
            return "ConvNet" if width == 128 else f"ConvNetW{width}"
    raise UserError(
        f"the experts of {store.path} have the network {spec}; the published programs know "
        "ConvNets of depth 3 and width 32, 64, 128 or 256 for CIFAR-10"
    )


@dataclass(frozen=True)
class Pair:
    """A published program and trajmatch, on the same experts.

    Attributes:
        checkout: Folder of the program.
        store: The experts.
        data: Address of their data set; None: as the store says.
        model: The program's name of their network.
    """

    checkout: Path
    store: Store
    data: str | None
    model: str

    def write_buffers(self, folder: Path) -> None:
        """Write the experts as the program reads them."""
        out = folder / "buffers" / "CIFAR10_NO_ZCA" / self.model
        out.parent.mkdir(parents=True)
        convert(ConvertConfig(source=self.store.path, out=out, quiet=True))

    def exact(self, folder: Path, iterations: int, epochs: int) -> dict[str, Any]:
        """Repeat the program's draws in float64; return the largest relative differences."""
        settings = self._settings(
            folder, iterations, batch_syn=EXACT_BATCH, num_eval=1, epoch_eval_train=epochs
        )
        records = self._run(folder, settings, dtype="float64", details=True, tested=500)
        differences = {"loss": 0.0}
        names = [name for name in ("images", "labels", "step_size") if name in records["outer"]]
        course = None
        for match in records["matches"]:
            found = self._gradients(match, names)
            course = _updated(course or _begun(match, names, settings), found)
            wanted = {"loss": torch.tensor(match["loss"], dtype=torch.float64)}
            wanted |= {f"gradient of {name}": match[f"grad_{name}"] for name in names}
            for name, tensor in wanted.items():
                worst = max(differences.get(name, 0.0), relative(found[name], tensor))
                differences[name] = worst
        assert course is not None
        for name in names:
            end = relative(course[name].value, records["outer"][name])
            differences[f"{name} after {iterations} iterations"] = end
        (evaluation,) = records["evaluations"]
        model = self._trained(evaluation, epochs)
        end = nn.utils.parameters_to_vector(model.parameters())
        differences[f"network after {epochs + 1} epochs"] = relative(end, evaluation["last"])
        ours = accuracy(model, evaluation["test_images"], evaluation["test_labels"])
        return {
            "iterations": iterations,
            "differences": differences,
            "accuracy": {"published": evaluation["accuracy"], "trajmatch": ours},
        }

    def course(self, folder: Path, iterations: int, count: int, epochs: int) -> dict[str, Any]:
        """Run both on their own in float32; return losses, seconds and accuracies."""
        settings = self._settings(folder, iterations, batch_syn=10 * SETTINGS["ipc"], num_eval=0)
        records = self._run(folder, settings, dtype="float32", details=False, tested=1)
        matches = records["matches"]
        sets = {"published": {"labels": _hard_labels(), **records["outer"]}}
        # Its updates are added, so nothing keeps it above 0.
        if (step_size := float(records["outer"]["step_size"])) <= 0:
            raise UserError(
                f"the published program ended with the step size {step_size:.3g}, by which no "
                "network can be trained; take fewer --iterations, or experts of more data"
            )
        seconds = {"published": median(match["seconds"] for match in matches[1:])}
        losses = {"published": _ends([match["loss"] for match in matches])}

        config = self._config(folder, iterations)
        result = distill(config)
        lines = [json.loads(line) for line in config.log_path.read_text().splitlines()]
        sets["trajmatch"] = {
            "images": result.images,
            "labels": result.labels,
            "step_size": torch.tensor(result.lr),
        }
        seconds["trajmatch"] = median(line["seconds"] for line in lines[1:])
        losses["trajmatch"] = _ends([line["loss"] for line in lines])
        accuracies = {
            name: {
                "published": self._by_program(folder, each, count, epochs),
                "trajmatch": self._by_trajmatch(each, count, epochs),
            }
            for name, each in sets.items()
        }
        return {
            "iterations": iterations,
            "losses": losses,
            "seconds": seconds,
            "ratio": seconds["published"] / seconds["trajmatch"],
            "epochs": epochs,
            "accuracy_of_set_by_evaluation": accuracies,
        }

    def _settings(self, folder: Path, iterations: int, **others: int) -> dict[str, Any]:
        """Return the program's settings; it evaluates once, before the first iteration."""
        return {
            **SETTINGS,
            "dataset": "CIFAR10",
            "model": self.model,
            "Iteration": iterations - 1,
            "eval_it": iterations,
            "buffer_path": str(folder / "buffers"),
            "data_path": str(folder),
            **others,
        }

    def _run(self, folder: Path, settings: Mapping[str, Any], **job: Any) -> dict[str, Any]:
        job |= {"experts": str(self.store.path.resolve()), "data": self._address}
        return run_program(self.checkout, settings, folder, **job)

    @property
    def _address(self) -> str | None:
        return None if self.data is None else absolute_uri(self.data)

    def _gradients(self, match: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
        """Return loss and gradients of a recorded match."""
        model = networks.build(self.store.manifest["network"]).double()
        start, steps = match["start"], SETTINGS["syn_steps"]
        leaves = {name: match[name].clone().requires_grad_() for name in names}
        images = leaves["images"]
        labels = leaves.get("labels", _hard_labels())
        batches = _batches(match["permutations"], EXACT_BATCH, steps)
        end = ops.unroll(
            model,
            start,
            images,
            labels,
            leaves["step_size"],
            batches,
            augment=Drawn(match["rows"]),
        )
        target = self._target(match["start_epoch"], start)
        loss = ops.param_distance(end, target, start)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        named = {f"gradient of {name}": each for name, each in zip(names, gradients, strict=True)}
        return {"loss": loss.detach(), **named}

    def _target(self, epoch: int, start: Tensor) -> Tensor:
        """Return where the expert goes that is at ``start`` after ``epoch`` epochs."""
        for expert in range(self.store.num_experts):
            if torch.equal(self.store.snapshot(expert, epoch).double(), start):
                return self.store.snapshot(expert, epoch + SETTINGS["expert_epochs"]).double()
        raise AssertionError("the program starts from no snapshot of an expert")

    def _trained(self, record: Mapping[str, Any], epochs: int) -> nn.Module:
        """Train a network with the batches and augmentations of a recorded evaluation."""
        images, labels = record["images"], record["labels"]
        # A DataLoader asks for a second permutation, for what is beyond whole epochs, and drops it.
        size = program_of(self.checkout).batch_train
        rounds = [
            [(images[batch], labels[batch]) for batch in permutation.split(size)]
            for permutation in record["permutations"][::2]
        ]
        rows = iter(record["rows"])
        model = networks.build(self.store.manifest["network"]).double()
        networks.load_flat_parameters(model, record["first"])
        protocol = Protocol(lr=float(record["step_size"]), epochs=epochs, batch_size=size)
        with (
            mock.patch.object(training, "_rounds", lambda *_: rounds),
            mock.patch.object(training, "DSA", lambda _: lambda x, _: ops.dsa(x, next(rows))),
        ):
            return training.train(model, images, labels, protocol).eval()

    def _config(self, folder: Path, iterations: int) -> DistillConfig:
        """Return trajmatch's settings for the same run."""
        soft = {"init": "correct", "labels": "soft", "lr_label": 2.0, "momentum_label": 0.9}
        return DistillConfig(
            experts=self.store.path,
            data=self.data,
            out=folder / "ours.safetensors",
            ipc=SETTINGS["ipc"],
            iterations=iterations,
            student_steps=SETTINGS["syn_steps"],
            expert_epochs=SETTINGS["expert_epochs"],
            max_start_epoch=SETTINGS["max_start_epoch"],
            lr_img=SETTINGS["lr_img"],
            lr_lr=SETTINGS["lr_lr"],
            lr_init=SETTINGS["lr_teacher"],
            quiet=True,
            **({**soft, "skip_above": 1.0} if program_of(self.checkout).soft else {}),
        )

    def _by_program(
        self, folder: Path, distilled: Mapping[str, Tensor], count: int, epochs: int
    ) -> list[float]:
        return evaluate_by_program(
            self.checkout,
            distilled,
            folder,
            experts=str(self.store.path.resolve()),
            data=self._address,
            tested=10_000,
            dtype="float32",
            model=self.model,
            networks=count,
            epochs=epochs,
        )

    def _by_trajmatch(
        self, distilled: Mapping[str, Tensor], count: int, epochs: int
    ) -> list[float]:
        dataset = self._dataset
        lr, size = float(distilled["step_size"]), program_of(self.checkout).batch_train
        return [
            training.train_fresh(
                distilled["images"],
                distilled["labels"],
                self.store.manifest["network"],
                Protocol(lr=lr, epochs=epochs, batch_size=size),
                dataset.normalise(dataset.test_images),
                dataset.test_labels,
                seed=derive_seed(0, "against official", number),
            ).accuracy
            for number in range(count)
        ]

    @cached_property
    def _dataset(self) -> Dataset:
        return self.store.training_set(self.store.load_data(self.data)[0])[0]


@dataclass(frozen=True)
class Drawn:
    """DSA with recorded parameters: an ``augment`` for :func:`trajmatch.ops.unroll`."""

    rows: Sequence[Tensor]

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Augment the batch of a step."""
        return ops.dsa(images, self.rows[step])

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """Return the parameters of a step."""
        return self.rows[step]


def _hard_labels() -> Tensor:
    """Return the classes of the synthetic images; MTT does not learn them."""
    return torch.arange(10).repeat_interleave(SETTINGS["ipc"])


def _batches(permutations: Sequence[Tensor], size: int, steps: int) -> list[Tensor]:
    """Return the batches of the steps: each permutation is used up from its last batch on."""
    parts = [part for each in permutations for part in reversed(each.split(size))]
    return parts[:steps]


def _begun(
    match: Mapping[str, Any], names: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, OuterParameter]:
    """Return the outer parameters before the first match, with the program's optimisers."""
    optimisers = {
        "images": SGD(lr=settings["lr_img"], flag="--lr-img", momentum=0.5),
        "labels": SGD(lr=2.0, flag="--lr-label", momentum=0.9),
        "step_size": SGD(lr=settings["lr_lr"], flag="--lr-lr", momentum=0.5),
    }
    return {name: OuterParameter.new(match[name], optimisers[name]) for name in names}


def _updated(
    course: Mapping[str, OuterParameter], found: Mapping[str, Tensor]
) -> dict[str, OuterParameter]:
    """Return the outer parameters after an iteration; DATM makes none with a loss above 1."""
    if "labels" in course and found["loss"] > 1:
        return dict(course)
    return {name: each.updated(found[f"gradient of {name}"]) for name, each in course.items()}


def _ends(losses: Sequence[float]) -> list[float]:
    """Return the mean loss of the first and of the last tenth."""
    tenth = max(1, len(losses) // 10)
    return [fmean(losses[:tenth]), fmean(losses[-tenth:])]


def as_text(record: Mapping[str, Any]) -> str:
    """Return a record as the program prints it."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    exact, course = record["exact"], record["course"]
    yield f"{record['program']} beside trajmatch, float64, {exact['iterations']} iterations:"
    for name, difference in exact["differences"].items():
        yield f"  {name}: relative difference {difference:.1e}"
    yield "  accuracy of the network: {published:.2f} % and {trajmatch:.2f} %".format(
        **exact["accuracy"]
    )
    yield f"each on its own, float32, {course['iterations']} iterations:"
    for name, (first, last) in course["losses"].items():
        seconds = course["seconds"][name]
        yield f"  {name}: loss {first:.3f} to {last:.3f}, {seconds:.3f} s an iteration"
    yield f"  trajmatch is {course['ratio']:.1f} times as fast"
    for name, by in course["accuracy_of_set_by_evaluation"].items():
        told = ", ".join(f"{fmean(each):.1f} % by {program}'s" for program, each in by.items())
        yield f"  set of {name}: {told} evaluation ({course['epochs']} epochs)"


if __name__ == "__main__":
    sys.exit(main())
