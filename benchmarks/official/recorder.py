"""Recorder of the random draws and results of a published program while it runs.

A match begins with the first permutation of the synthetic images and ends when the program logs
its loss. An evaluation is a call of ``evaluate_synset``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch.ops import dsa_parameters

#: Outer parameters by the number of their dimensions.
_OUTER = {4: "images", 2: "labels", 0: "step_size"}


@dataclass
class Recorder:
    """Records of one run; tensors are copies.

    Attributes:
        details: Record tensors; without them only losses and times are.
        matches: For each outer iteration ``loss``, ``start_epoch``, ``seconds`` and, with details,
            ``start`` ``[P]``, ``permutations``, ``rows`` (DSA, by student step) and, for each outer
            parameter, its value and its gradient, ``grad_NAME``.
        evaluations: For each network ``accuracy`` and ``seconds`` and, with details, its first and
            last parameters, the set, ``permutations`` and ``rows``.
        outer: The tensors that the program learns, by name.
    """

    details: bool
    matches: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    outer: dict[str, Tensor] = field(default_factory=dict)
    _current: dict[str, Any] | None = None
    _evaluating: bool = False
    _since: float = 0.0

    def install(self, utils: Any, reparam_module: Any) -> None:
        """Observe the program's modules and PyTorch for the rest of this process."""
        utils.evaluate_synset = self._evaluation(utils.evaluate_synset)
        self._observe_optimisers()
        if not self.details:
            return
        utils.DiffAugment = self._augmentation(utils.DiffAugment)
        self._observe_permutations()
        self._observe_gradients()
        forward = reparam_module.ReparamModule.forward

        def observed(module: Any, *inputs: Any, flat_param: Tensor, **options: Any) -> Any:
            if self._current is not None and not self._evaluating:
                self._current.setdefault("start", flat_param.detach().clone())
            return forward(module, *inputs, flat_param=flat_param, **options)

        reparam_module.ReparamModule.forward = observed

    def on_log(self, values: Mapping[str, Any]) -> None:
        """Take what the program logs; its loss ends a match."""
        if "Synthetic_LR" in values:  # after the evaluation of this iteration
            self._since = time.perf_counter()
        if "Grand_Loss" not in values:
            return
        match = self._current or {}
        match["loss"] = float(values["Grand_Loss"])
        match["start_epoch"] = int(values["Start_Epoch"])
        match["seconds"] = time.perf_counter() - self._since
        self.matches.append(match)
        self._current = None

    def _observe_optimisers(self) -> None:
        recorder = self

        class SGD(torch.optim.SGD):
            """SGD that tells which tensors the program learns."""

            def __init__(self, parameters: Any, **options: Any) -> None:
                parameters = list(parameters)
                first = parameters[0]
                if len(parameters) == 1 and not isinstance(first, nn.Parameter):
                    recorder.outer[_OUTER[first.dim()]] = first
                super().__init__(parameters, **options)

        torch.optim.SGD = SGD

    def _observe_permutations(self) -> None:
        permute = torch.randperm

        def observed(n: int, **options: Any) -> Tensor:
            permutation = permute(n, **options)
            if self._current is None and self.outer and not self._evaluating:
                outer = {name: each.detach().clone() for name, each in self.outer.items()}
                self._current = {"permutations": [], "rows": [], **outer}
            if self._current is not None:
                self._current["permutations"].append(permutation.clone())
            return permutation

        torch.randperm = observed

    def _observe_gradients(self) -> None:
        backward = Tensor.backward

        def observed(loss: Tensor, *args: Any, **options: Any) -> None:
            backward(loss, *args, **options)
            if self._current is not None and not self._evaluating:
                for name, each in self.outer.items():
                    assert each.grad is not None
                    self._current[f"grad_{name}"] = each.grad.clone()

        Tensor.backward = observed

    def _augmentation(self, augment: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def observed(x: Tensor, strategy: str, param: Any, **options: Any) -> Tensor:
            draws: list[Tensor] = []
            functions = torch.rand, torch.randint

            def keeping(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
                def draw(*args: Any, **options: Any) -> Tensor:
                    draws.append(function(*args, **options))
                    return draws[-1]

                return draw

            torch.rand, torch.randint = map(keeping, functions)
            try:
                augmented = augment(x, strategy, param=param, **options)
            finally:
                torch.rand, torch.randint = functions
            if self._current is not None:
                group = strategy.split("_")[int(draws[0])]
                drawn = [each.reshape(len(x)) for each in draws[1:]]
                self._current["rows"].append(dsa_rows(group, drawn, param, x.shape[2:]))
            return augmented

        return observed

    def _evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def observed(
            number: int,
            net: nn.Module,
            images: Tensor,
            labels: Tensor,
            testloader: Any,
            args: Any,
            **options: Any,
        ) -> Any:
            record: dict[str, Any] = {}
            if self.details:
                tests = [testloader.dataset[each] for each in range(len(testloader.dataset))]
                record = {
                    "permutations": [],
                    "rows": [],
                    "images": images.clone(),
                    "labels": labels.clone(),
                    "step_size": torch.tensor(args.lr_net),
                    "first": nn.utils.parameters_to_vector(net.parameters()).detach().clone(),
                    "test_images": torch.stack([image for image, _ in tests]),
                    "test_labels": torch.tensor([int(label) for _, label in tests]),
                }
            self._current, self._evaluating = record, True
            begin = time.perf_counter()
            results = evaluate(number, net, images, labels, testloader, args, **options)
            record["seconds"] = time.perf_counter() - begin
            self._current, self._evaluating = None, False
            record["accuracy"] = 100.0 * float(results[2])
            if self.details:
                trained = results[0].parameters()
                record["last"] = nn.utils.parameters_to_vector(trained).detach().clone()
            self.evaluations.append(record)
            return results

        return observed


def dsa_rows(group: str, draws: list[Tensor], constants: Any, size: torch.Size) -> Tensor:
    """Return a published program's draws for one batch as parameters of :func:`trajmatch.ops.dsa`.

    Args:
        group: The augmentation that it drew.
        draws: Its random numbers in their order, each ``[B]``.
        constants: Its constants: an object with the attributes of ``ParamDiffAug``.
        size: Height and width of the images.
    """
    if group == "color":
        brightness, saturation, contrast = draws
        return dsa_parameters.color(
            (brightness - 0.5) * constants.brightness,
            saturation * constants.saturation,
            contrast + constants.contrast,
        )
    if group == "crop":
        return dsa_parameters.crop(*draws)
    if group == "cutout":
        height, width = (int(side * constants.ratio_cutout + 0.5) for side in size)
        top, left = draws
        return dsa_parameters.cutout(top - height // 2, left - width // 2, height, width)
    if group == "flip":
        return dsa_parameters.flip(draws[0] < constants.prob_flip)
    if group == "scale":
        low, high = 1.0 / constants.ratio_scale, constants.ratio_scale
        return dsa_parameters.scale(*(each * (high - low) + low for each in draws))
    assert group == "rotate"
    half = constants.ratio_rotate / 180 * math.pi
    return dsa_parameters.rotate((draws[0] - 0.5) * 2 * half)
