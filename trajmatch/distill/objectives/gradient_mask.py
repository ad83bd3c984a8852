"""Mask for the gradient of the images, from an expert's class activation maps (EDF)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trajmatch.distill.setup import Setup
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts

#: Images per pass through the expert.
_BATCH = 64

_POOLING = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class GradientMask:
    """Factors for the images' gradient (EDF's discriminative area enhancement, CVPR 2025).

    Where the class activation map ``c`` of the first expert is below the threshold (default: the
    mean of the map), the factor is 1; elsewhere it is ``c + beta``.
    """

    experts: FinalExperts
    beta: float
    threshold: float | None = None

    @classmethod
    def of(cls, setup: Setup) -> "GradientMask | None":
        """Return the mask of a run; None without ``--mask-gradient``."""
        config, device = setup.config, setup.device
        if config.mask_gradient is None:
            return None
        if setup.store.loss != "cross_entropy":
            raise UserError(
                "--mask-gradient needs experts that classify, but the experts in "
                f"{setup.store.path} learn target vectors; leave it out"
            )
        experts = FinalExperts(setup.store, setup.model, "--mask-gradient")
        mask = cls(experts, config.mask_gradient, config.mask_threshold)
        # A network without feature maps fails here rather than in the first iteration.
        mask(torch.zeros(1, *setup.shape, device=device), torch.zeros(1, device=device).long())
        return mask

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return factors ``[n, 1, H, W]`` for the gradient of normalised images.

        ``labels`` are class indices ``[n]``, or logits ``[n, K]`` with the class at the maximum.
        """
        model = self.experts.network(0)
        classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
        parts = zip(images.split(_BATCH), classes.split(_BATCH), strict=True)
        maps = torch.cat([activation_map(model, *each) for each in parts])
        limit = maps.mean((2, 3), keepdim=True) if self.threshold is None else self.threshold
        return torch.where(maps < limit, 1.0, maps + self.beta)


def activation_map(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return class activation maps ``[B, 1, H, W]`` (Grad-CAM, Selvaraju et al., ICCV 2017).

    A map is ``relu(sum_k a_k A_k)`` over the channels ``k`` of ``A``, the last feature map that has
    more than one pixel and is not the output of a pooling module (UserError if there is none).
    ``a_k`` is the gradient of the class's logit with respect to ``A_k``, averaged over pixels. Maps
    are scaled to 0..1 (all 0 if nothing supports the class), resized bilinearly and detached.
    """
    features: list[Tensor] = []
    last: list[object] = [None]

    def look(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        # A container returns the tensor of its last child, which was seen already.
        if not isinstance(output, Tensor) or output.dim() != 4 or output is last[0]:
            return
        # For a pooling module take its input, the feature map before pooling.
        found = inputs[0] if isinstance(module, _POOLING) else output
        if found is not last[0] and found.shape[2:].numel() > 1:
            features[:] = [found]
        last[0] = output

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        # The images require a gradient, so that the output of frozen layers has one too.
        with torch.enable_grad():
            logits = model(images.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    if not features:
        raise UserError(
            "--mask-gradient needs a network in which modules return feature maps [B, C, H, W] of "
            f"more than one pixel, and {type(model).__name__} has none; leave it out"
        )
    # A logit depends on its own image only, so the sum's gradient contains each logit's gradient.
    score = logits.gather(1, classes.view(-1, 1)).sum()
    (gradient,) = torch.autograd.grad(score, features)
    found = features[0].detach()
    # a_k has shape [B, channels, 1, 1]; the sum over channels gives [B, 1, h, w].
    maps = (gradient.mean((2, 3), keepdim=True) * found).sum(1, keepdim=True).relu()
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    return interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)
