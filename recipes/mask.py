"""Write the mask of what is flawed in a picture, for a tool that repaints it.

    align mask broken.png --prompt "a woman with a cup" --out mask.png
    align mask scores/heatmaps/CRITIC/broken.png-DIGITS/implausibility.png --is_heatmap --soft

A critic's heatmap becomes regions (see align/masks.py), which are white on black: what ComfyUI, the web UIs of Stable
Diffusion and IOPaint take for a mask. A file that this did not write is not overwritten.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, PngImagePlugin
from torch import Tensor

from align.device import pick_device, set_threads
from align.masks import MaskSettings, Region, combined, find_regions, union
from align.state import atomic_path
from recipes.configs.mask import MaskConfig
from recipes.configuration import launch
from recipes.repair_look import check_maps
from recipes.reward_names import announce
from recipes.settings import as_yaml
from rewards.base import Critic
from rewards.image_file import alpha_of, opened, read_image
from rewards.load import load_reward

SIGNATURE = "align mask"
"""The text `Software` of the masks that are ours."""


def main(config: MaskConfig, *, dry_run: bool = False) -> None:
    """Write the mask, and say how much of the picture it takes."""
    check_out(config.out, config.image)
    if not config.is_heatmap:
        announce([config.critic])
    if dry_run:
        print(f"{as_yaml(config)}plan: the mask of {config.image}, into {config.out}")
        return
    heatmap = read_heatmap(config.image) if config.is_heatmap else ask_critic(config)
    regions = find_regions(heatmap, MaskSettings(**config.mask.model_dump()))
    share = union(regions, *heatmap.shape).float().mean().item()
    write_mask(config.out, regions, *heatmap.shape, soft=config.soft)
    if regions:
        print(f"{config.out}: {len(regions)} region{'s' * (len(regions) > 1)}, {share:.1%} of the picture.")
    else:
        peak = heatmap.max().item()
        print(f"No flaw found: no region is hot and of a fit size (most heat: {peak:.2f}). {config.out} is all black.")


def ask_critic(config: MaskConfig) -> Float[Tensor, "h w"]:
    """The heatmap that the critic draws of the picture.

    Raises:
        ValueError: A file that cannot be read, a reward that draws no heatmaps, or a heatmap that the critic does not
            have.
    """
    image, device = _read(config.image), pick_device(config.device)
    set_threads()
    critic = load_reward(config.critic, device)
    names = check_maps(critic, config.heatmap)
    assert isinstance(critic, Critic)  # it has maps
    with torch.no_grad():
        heatmaps = critic.critique(image[None].to(device), [config.prompt or ""]).heatmaps
    return combined([heatmaps[name][0].float().cpu() for name in names])


def read_heatmap(path: Path) -> Float[Tensor, "h w"]:
    """A grey picture as heat: 0 where it is black, 1 where it is white.

    Raises:
        ValueError: A file that cannot be read, or a picture with colours or transparent parts.
    """
    image = _read(path)
    if alpha_of(path.read_bytes()) is not None or not (image == image[:1]).all():
        raise ValueError(
            f"{path} has colours or transparent parts; a heatmap is a grey picture, 0 where nothing is wrong. Give the "
            "file without `-overlay` that `align score --heatmaps` wrote, or leave out --is_heatmap."
        )
    return image[0]


def write_mask(path: Path, regions: Sequence[Region], height: int, width: int, soft: bool) -> None:
    """Write the regions of a height x width picture, hard or feathered, as an 8-bit grey PNG, white where they are."""
    whole = union(regions, height, width).float()
    if soft and regions:
        whole = torch.stack([region.soft for region in regions]).amax(dim=0)
    signed = PngImagePlugin.PngInfo()
    signed.add_text("Software", SIGNATURE)
    with atomic_path(path) as temporary:
        Image.fromarray((whole * 255).round().byte().numpy()).save(temporary, format="PNG", pnginfo=signed)


def check_out(out: Path, image: Path) -> None:
    """Refuse to write over the picture, or over what is no mask of ours.

    Raises:
        ValueError: It says which.
    """
    if out.exists() and (out.resolve() == image.resolve() or not _is_ours(out)):
        raise ValueError(f"{out} was not written by align mask and would be overwritten. Give another --out.")


def _is_ours(path: Path) -> bool:
    try:
        with opened(path.read_bytes()) as image:
            return image.info.get("Software") == SIGNATURE
    except (ValueError, OSError):
        return False


def _read(path: Path) -> Float[Tensor, "3 h w"]:
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


if __name__ == "__main__":
    launch(MaskConfig, main)
