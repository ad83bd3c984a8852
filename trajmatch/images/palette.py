"""Images of few colours (after AutoPalette, NeurIPS 2024): a palette and indices into it."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from trajmatch.images.parametrisation import Tensors, WithSettings, in_batches, paid_for


@dataclass(frozen=True)
class Palette(WithSettings):
    """Palette of ``colours`` 8-bit colours (2 to 256) per image, and an index per pixel.

    Only the idea and the budget are AutoPalette's; its palette network and losses are missing. Here
    the parameters are an image and its palette, and each pixel shows the nearest colour. The
    gradient passes straight through to the pixel. A colour gets the mean gradient of its pixels, so
    that it moves as they do. As in the stored file, the palette's values are rounded to 256
    equally spaced levels from its minimum to its maximum.
    An image takes ``ceil(log2(colours))`` bits per pixel, one byte per channel of each colour, and
    8 bytes for minimum and spacing; the budget per class is ``ipc * C * H * W`` bytes.
    """

    colours: Annotated[int, Meta(ge=2, le=256)] = 64

    @property
    def bits(self) -> int:
        """Number of bits per index."""
        return (self.colours - 1).bit_length()

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images whose palettes and indices fit the budget."""
        # Bytes: indices rounded up to whole bytes, palette, minimum and step.
        size = -(-shape[1:].numel() * self.bits // 8) + self.colours * shape[0] + 8
        return paid_for(ipc, f"palette:colours={self.colours}", size, shape, "bytes")

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the images, with the k-means centres of their colours as palettes."""
        palettes = []
        for pixels in images.flatten(2).mT.cpu():
            colours = pixels.unique(dim=0)
            if len(colours) > self.colours:
                colours = k_means(pixels, self.colours, 0)
            # Repeat the colours if there are fewer than the palette holds.
            palettes.append(colours[torch.arange(self.colours) % len(colours)])
        return {"pixels": images, "palette": torch.stack(palettes).to(images)}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the images, each pixel in the nearest colour of its palette."""
        # Tensors of a file have indices instead of pixels.
        if "indices" in parameters:
            indices = self.unpacked(parameters["indices"], shape[1:].numel())
            palette = parameters["low"] + parameters["palette"] * parameters["step"]
            shown = palette.gather(1, indices[..., None].expand(-1, -1, shape[0]))
            return shown.mT.unflatten(2, shape[1:])
        tensors = [parameters["pixels"], parameters["palette"]]
        return in_batches(self._shown, tensors, 3 * self.colours * shape[1:].numel())

    def _shown(self, images: Tensor, palette: Tensor) -> Tensor:
        low, step, bytes_ = _rounded(palette)
        pixels, rounded = images.flatten(2).mT, low + bytes_ * step
        colours = torch.arange(self.colours, device=palette.device)
        # One-hot: [n, H * W, colours].
        chosen = (_nearest(pixels, rounded)[..., None] == colours).to(palette)
        counts = chosen.sum(1)[..., None].clamp(min=1)
        # Straight-through: x - x.detach() is zero, so values are exactly the rounded palette's.
        # Dividing by the pixel count turns the sum of a colour's gradients into their mean.
        shown = chosen @ (rounded + (palette - palette.detach()) / counts)
        return (shown + (pixels - pixels.detach())).mT.unflatten(2, images.shape[2:])

    def stored(self, parameters: Tensors) -> Tensors:
        """Return uint8 palettes with their ranges, and packed indices."""
        low, step, bytes_ = _rounded(parameters["palette"])
        indices = _nearest(parameters["pixels"].flatten(2).mT, low + bytes_ * step)
        # The bits of all indices of an image, one index after another, lowest bit first.
        bits = (indices.cpu()[..., None] >> torch.arange(self.bits) & 1).flatten(1).numpy()
        packed = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little")).to(low.device)
        return {"palette": bytes_.to(torch.uint8), "low": low, "step": step, "indices": packed}

    def restored(self, stored: Tensors, shape: torch.Size) -> Tensors:
        """Return the rendered images and the rounded palettes."""
        palette = stored["low"] + stored["palette"] * stored["step"]
        return {"pixels": self.render(stored, shape), "palette": palette}

    def unpacked(self, packed: Tensor, pixels: int) -> Tensor:
        """Unpack indices from bytes. ``[n, H * W]``, int64."""
        bits = np.unpackbits(packed.cpu().numpy(), 1, pixels * self.bits, "little")
        indices = torch.from_numpy(bits).unflatten(1, (pixels, -1)).long()
        return (indices << torch.arange(self.bits)).sum(-1).to(packed.device)


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the k-means centres ``[clusters, D]`` of points ``[n, D]`` on the CPU."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # With several threads the order of sums, and so the result, would vary.
    with threadpool_limits(1):
        means = KMeans(clusters, n_init=1, random_state=seed).fit(points.numpy())
    return torch.from_numpy(means.cluster_centers_)


def _rounded(palette: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each palette's minimum and spacing ``[n, 1, 1]``, and its colours as levels 0..255."""
    palette = palette.detach()
    low, high = palette.amin((1, 2), keepdim=True), palette.amax((1, 2), keepdim=True)
    # The clamp keeps a palette of one colour from dividing by 0.
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    return low, step, ((palette - low) / step).round().clamp(0, 255)


def _nearest(pixels: Tensor, palette: Tensor) -> Tensor:
    """Return the index of each pixel's nearest colour. ``[n, H * W]``, int64."""
    # Distances by matmul would round small differences to 0.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(pixels.detach(), palette, compute_mode=exact).argmin(-1)
