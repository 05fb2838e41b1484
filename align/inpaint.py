"""Regions of images to repainted candidates: crop, scale, repaint, match the colours, paste; no other pixel changes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, pad

from align.masks import Box, Region
from align.model import Sampling, TextToImage

LEVEL = 1 / 255
"""One step of 8 bits."""


@dataclass(frozen=True, eq=False)
class Job:
    """One candidate to be made: a region of an image, repainted with a seed.

    Attributes:
        image: RGB of any size; it is not changed.
        region: Where to repaint, found in a map or mask of the image's size.
        prompt: What the crop around the region is to show.
        seed: Where the candidate's noise comes from; another seed gives another candidate.
        strength: In (0, 1], see `TextToImage.inpaint`.
        padding: What the model sees around the region, on each side, as a share of the image's longer side, in [0, 1].
            1 shows all of a square image; 1/16 is usual where images are large: the model then paints in more detail.

    Raises:
        ValueError: A padding out of bounds, or a region of another size than its image.
    """

    image: UInt8[Tensor, "3 h w"]
    region: Region
    prompt: str
    seed: int
    strength: float
    padding: float

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 1:
            raise ValueError(f"padding is {self.padding}; it must be in [0, 1], a share of the image's longer side.")
        if self.image.shape[1:] != self.region.soft.shape:
            raise ValueError(
                f"An image of {tuple(self.image.shape[1:])} came with a region of {tuple(self.region.soft.shape)} "
                "(height, width); they must be of one size. Scale the heatmap or the mask to the image."
            )

    @property
    def box(self) -> Box:
        """The square that the model sees."""
        height, width = self.image.shape[1:]
        return crop_box(self.region.box, round(self.padding * max(height, width)), height, width)


def repaint(
    model: TextToImage, jobs: Sequence[Job], sampling: Sampling, batch_size: int
) -> list[UInt8[Tensor, "3 _ _"]]:
    """A candidate for each job, in their order: its image with its region repainted, of the image's size, on the CPU.

    Around each region a square is cropped (see `crop_box`), scaled to the model's resolution, inpainted, matched in
    colour (see `match_colours`), scaled back, and pasted as the region's soft mask says: every pixel where that is 0 is
    bit for bit the image's. Jobs of one strength share batches, whatever their images, regions and seeds; a candidate
    does not depend on the others of its batch, up to rounding.

    Arguments:
        model: What repaints, at its own resolution whatever the crop's size.
        jobs: The candidates to make.
        sampling: How to draw.
        batch_size: Candidates that the model makes at once.

    Raises:
        ValueError: A batch size below 1, pixels that are not finite, or what `TextToImage.inpaint` refuses.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    painted: dict[int, Tensor] = {}
    for strength in dict.fromkeys(job.strength for job in jobs):
        alike = [index for index, job in enumerate(jobs) if job.strength == strength]
        for batch in (alike[start : start + batch_size] for start in range(0, len(alike), batch_size)):
            painted |= zip(batch, _repaint_batch(model, [jobs[index] for index in batch], sampling), strict=True)
    return [painted[index] for index in range(len(jobs))]


def crop_box(box: Box, padding: int, height: int, width: int) -> Box:
    """A square around a box: the box's longer side and `padding` pixels on both ends, moved into the image.

    Its side is at most the image's longer one. Where the image is too narrow for it, it reaches beyond on both sides.
    """
    side = min(max(box.height, box.width) + 2 * padding, max(height, width))
    top = _start(box.top + box.bottom, side, height)
    left = _start(box.left + box.right, side, width)
    return Box(top, left, top + side, left + side)


def crop(image: Float[Tensor, "channels h w"], box: Box) -> Float[Tensor, "channels box_h box_w"]:
    """The pixels of a box; beyond the image, those of its nearest edge."""
    inside = _inside(box, *image.shape[1:])
    beyond = (inside.left - box.left, box.right - inside.right, inside.top - box.top, box.bottom - inside.bottom)
    return pad(image[:, inside.top : inside.bottom, inside.left : inside.right], beyond, mode="replicate")


def scaled(image: Float[Tensor, "channels h w"], side: int) -> Float[Tensor, "channels side side"]:
    """An image in [0, 1] at another size (antialiased bicubic); at its own size it stays as it is."""
    if image.shape[1:] == (side, side):
        return image
    return interpolate(image[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def scaled_mask(mask: Float[Tensor, "h w"], side: int) -> Float[Tensor, "side side"]:
    """A soft mask at another size: bilinear where it grows; where it shrinks, the largest of the pixels that meet."""
    if side < len(mask):
        return adaptive_max_pool2d(mask[None], side)[0]
    return interpolate(mask[None, None], (side, side), mode="bilinear")[0, 0]


def match_colours(
    painted: Float[Tensor, "batch 3 h w"], originals: Float[Tensor, "batch 3 h w"], masks: Float[Tensor, "batch h w"]
) -> Float[Tensor, "batch 3 h w"]:
    """Shift and stretch each channel so that its mean and deviation off the mask are those of the original there.

    The autoencoder and the model shift colours a little everywhere, which shows as a seam. One step of 8 bits is added
    to both deviations, so that a flat surround does not stretch what is painted; where all is masked, nothing changes.
    """
    off = (masks == 0)[:, None].to(painted.dtype)
    count = off.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    mean, deviation = _statistics(painted, off, count)
    wanted_mean, wanted_deviation = _statistics(originals, off, count)
    stretch = (wanted_deviation + LEVEL) / (deviation + LEVEL)
    matched = (painted - mean) * stretch + wanted_mean
    return matched.clamp(0, 1).where(off.amax(dim=(2, 3), keepdim=True) > 0, painted)


def paste(
    image: UInt8[Tensor, "3 h w"], painted: Float[Tensor, "3 box_h box_w"], soft: Float[Tensor, "h w"], box: Box
) -> UInt8[Tensor, "3 h w"]:
    """A copy of the image with `painted`, the pixels of `box`, blended in where `soft` is above 0 and nowhere else."""
    inside = _inside(box, *soft.shape)
    rows, columns = slice(inside.top, inside.bottom), slice(inside.left, inside.right)
    new = painted[:, inside.top - box.top :, inside.left - box.left :][:, : inside.height, : inside.width]
    old, share = image[:, rows, columns], soft[rows, columns]
    result = image.clone()
    result[:, rows, columns] = (share * new.clamp(0, 1) * 255 + (1 - share) * old).round().to(torch.uint8)
    return result


def _repaint_batch(model: TextToImage, jobs: Sequence[Job], sampling: Sampling) -> list[Tensor]:
    originals = torch.stack([scaled(crop(job.image.float() / 255, job.box), model.resolution) for job in jobs])
    masks = torch.stack([scaled_mask(crop(job.region.soft[None], job.box)[0], model.resolution) for job in jobs])
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    painted = model.inpaint(originals, masks, prompts, seeds, jobs[0].strength, sampling).cpu()
    _check_finite(painted, prompts)
    matched = match_colours(painted, originals, masks)
    pairs = list(zip(jobs, matched, strict=True))
    return [paste(job.image, scaled(one, job.box.height), job.region.soft, job.box) for job, one in pairs]


def _start(twice_centre: int, side: int, size: int) -> int:
    """Where a side begins that is centred, and then moved into the image; if too long for it, centred on the image."""
    return (size - side) // 2 if side > size else min(max((twice_centre - side) // 2, 0), size - side)


def _inside(box: Box, height: int, width: int) -> Box:
    return Box(max(box.top, 0), max(box.left, 0), min(box.bottom, height), min(box.right, width))


def _statistics(images: Tensor, off: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel where `off` is 1."""
    mean = (images * off).sum(dim=(2, 3), keepdim=True) / count
    variance = ((images - mean).square() * off).sum(dim=(2, 3), keepdim=True) / count
    return mean, variance.sqrt()


def _check_finite(painted: Tensor, prompts: Sequence[str]) -> None:
    if not torch.isfinite(painted).all():
        raise ValueError(
            f"The model gave pixels that are not finite, among the repairs of {prompts[0]!r} to {prompts[-1]!r}. "
            "Half precision overflows in some models: use bf16 or float32 (mixed_precision no)."
        )
