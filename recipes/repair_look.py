"""What a critic sees in pictures under repair: scores, and the regions that are to be repainted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from align.masks import MaskSettings, combined, find_regions, regions_of_mask
from recipes.configs.repair import RepairSettings
from recipes.repair_state import Repair, Scores
from rewards.base import Critic, Critique, Reward

ALL_MAPS = "both"
MAX_PIXELS = 16 * 2**20
"""Of the pictures that are looked at together."""

Thing = TypeVar("Thing")


class Looker:
    """A critic, and what of it counts.

    Arguments:
        critic: A critic; any reward where every picture comes with a mask of the user's own.
        settings: Which maps, how heat becomes regions, which score decides.
        device: Where the critic is.
        own_masks: Every picture has a mask, all of which is to be repainted; no map is looked at.

    Raises:
        ValueError: The critic draws no such map, or has no such score.
    """

    def __init__(self, critic: Reward, settings: RepairSettings, device: torch.device, own_masks: bool = False) -> None:
        self.critic, self.device = critic, device
        self.maps = () if own_masks else check_maps(critic, settings.heatmap)
        if settings.objective not in critic.dimensions:
            raise ValueError(
                f"The objective {settings.objective!r} is none of the critic's scores: {', '.join(critic.dimensions)}."
            )
        self._masks = MaskSettings(**settings.region.model_dump())

    @torch.no_grad()
    def look(self, repairs: Sequence[Repair]) -> None:
        """Score pictures as they are, and find what is to be repainted; those in which nothing glows have ended."""
        for batch in by_pixels(repairs, lambda repair: repair.pixels):
            critique = self._critique(batch)
            for index, repair in enumerate(batch):
                repair.after = self.named(critique.scores[index])
                repair.before = repair.before or repair.after
                self._find(repair, critique, index)

    @torch.no_grad()
    def score(self, owners: Sequence[Repair], painted: Sequence[Tensor]) -> Float[Tensor, "candidate dimension"]:
        """The scores of repaintings, each of the picture beside it."""
        rows: list[Tensor] = []
        for batch in by_pixels(list(zip(owners, painted, strict=True)), lambda pair: pair[1]):
            images = [repair.seen(pixels).to(self.device) for repair, pixels in batch]
            rows.append(self.critic(images, [repair.prompt for repair, _ in batch]).cpu())
        return torch.cat(rows)

    def named(self, scores: Float[Tensor, " dimension"]) -> Scores:
        """Scores by the names of their dimensions."""
        return dict(zip(self.critic.dimensions, scores.tolist(), strict=True))

    def _critique(self, repairs: Sequence[Repair]) -> Critique:
        images = [repair.seen(repair.pixels).to(self.device) for repair in repairs]
        prompts = [repair.prompt for repair in repairs]
        if isinstance(self.critic, Critic) and self.maps:
            return self.critic.critique(images, prompts)
        return Critique(self.critic(images, prompts), {}, [[] for _ in repairs], [[] for _ in repairs])

    def _find(self, repair: Repair, critique: Critique, index: int) -> None:
        if self.maps:
            pairs = zip(critique.words[index], critique.misaligned[index], strict=True)
            repair.missed = [word for word, missed in pairs if missed]
            heat = combined([critique.heatmaps[name][index].float().cpu() for name in self.maps])
            repair.heat = heat if repair.heat is None else repair.heat
            repair.regions = find_regions(heat, self._masks, repair.mask)
        else:
            assert repair.mask is not None  # without maps there is a mask
            repair.regions = regions_of_mask(repair.mask, self._masks)
        repair.ended = not repair.regions


def by_pixels(
    things: Iterable[Thing], pixels: Callable[[Thing], Tensor], at_most: int | None = None
) -> Iterator[list[Thing]]:
    """The things in their order, as many at once as have `MAX_PIXELS` together (and are `at_most`); at least one."""
    batch: list[Thing] = []
    total = 0
    for thing in things:
        size = pixels(thing)[0].numel()
        if batch and (total + size > MAX_PIXELS or len(batch) == at_most):
            yield batch
            batch, total = [], 0
        batch.append(thing)
        total += size
    if batch:
        yield batch


def check_maps(critic: Reward, heatmap: str) -> tuple[str, ...]:
    """The names of the critic's maps that are followed.

    Raises:
        ValueError: It draws none, or none of that name.
    """
    if not isinstance(critic, Critic):
        raise ValueError(
            "The critic draws no heatmaps, so it does not say where a picture is wrong. Use one that does, such as "
            "sandbox-rahf or rahf-port, without a dimension or a weight; or give a mask or a heatmap of your own."
        )
    names = critic.heatmaps if heatmap == ALL_MAPS else (heatmap,)
    if not set(names) <= set(critic.heatmaps):
        raise ValueError(f"The critic draws {', '.join(critic.heatmaps)}, and no {heatmap}. Name one, or {ALL_MAPS}.")
    return tuple(names)
