"""Repair in rounds: a critic says what glows, a model repaints it, and what the critic finds best is kept.

    settings = RepairSettings()
    repairer = Repairer(model, Looker(critic, settings, model.device), settings)
    repairs = [Repair(pixels, "a red circle")]
    repairer(repairs)
    repairs[0].pixels, repairs[0].after

After RichHF-18K (arXiv 2312.10240, section 5), which repaints what the predicted heatmap marks. Ours beyond it: several
candidates, of which none is taken that is not better than the picture as it is, and rounds.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from align.inpaint import Job, repaint
from align.model import Sampling, TextToImage
from recipes.configs.repair import RepairSettings
from recipes.repair_look import Looker
from recipes.repair_state import Attempt, Candidate, Repair, choose

SMALL_PADDING = 1 / 16
"""Of pictures that are larger than the model's own."""


class Repairer:
    """A model and a critic, loaded once, that repair pictures of any sizes together."""

    def __init__(self, model: TextToImage, looker: Looker, settings: RepairSettings) -> None:
        self.model, self.looker, self.settings = model, looker, settings
        self._sampling = Sampling(**settings.sampling.model_dump(exclude={"batch_size"}))

    def __call__(self, repairs: Sequence[Repair]) -> None:
        """Repair all of them, round by round, until nothing glows or nothing is gained."""
        for number in range(self.settings.rounds):
            live = [repair for repair in repairs if not repair.ended]
            self.looker.look(live)
            self._round([repair for repair in live if not repair.ended], number)

    def _round(self, repairs: Sequence[Repair], number: int) -> None:
        """One region of each picture after the other; a picture that gains nothing in a round has ended."""
        for place in range(max((len(repair.regions) for repair in repairs), default=0)):
            self._try([repair for repair in repairs if len(repair.regions) > place], place, number)
        for repair in repairs:
            repair.ended = all(attempt.chosen is None for attempt in repair.attempts if attempt.round == number)

    def _try(self, repairs: Sequence[Repair], place: int, number: int) -> None:
        """Repaint a region of each picture, and keep the best candidate where one is better."""
        plan = self._plan(number)
        jobs = [self._job(repair, place, seed, strength) for repair in repairs for seed, strength in plan]
        painted = repaint(self.model, jobs, self._sampling, self.settings.sampling.batch_size)
        scores = self.looker.score([repair for repair in repairs for _ in plan], painted)
        for index, repair in enumerate(repairs):
            own = slice(index * len(plan), (index + 1) * len(plan))
            self._keep(repair, place, number, painted[own], scores[own])

    def _plan(self, number: int) -> list[tuple[int, float]]:
        """Seed and strength of each candidate; another round has other seeds."""
        strengths, n = self.settings.strength, self.settings.candidates
        first = self.settings.seed + number * n
        return [(first + index, strengths[index % len(strengths)]) for index in range(n)]

    def _job(self, repair: Repair, place: int, seed: int, strength: float) -> Job:
        is_small = max(repair.pixels.shape[1:]) <= self.model.resolution
        padding = self.settings.padding
        if padding is None:
            padding = 1.0 if is_small else SMALL_PADDING
        missed = " ".join(repair.missed) if self.settings.sharpen else ""
        text = f"{missed}, {repair.prompt}" if missed else repair.prompt
        return Job(repair.pixels, repair.regions[place], text, seed, strength, padding)

    def _keep(
        self,
        repair: Repair,
        place: int,
        number: int,
        painted: Sequence[Tensor],
        scores: Float[Tensor, "candidate dimension"],
    ) -> None:
        """Note what was tried, and take the best candidate if one may be taken."""
        dimensions, settings = self.looker.critic.dimensions, self.settings
        above = repair.after[settings.objective] + settings.min_gain
        original = [repair.before[name] for name in dimensions]
        chosen = choose(scores, above, original, settings.tolerance, dimensions.index(settings.objective))
        tried = zip(self._plan(number), scores, strict=True)
        candidates = [Candidate(seed, strength, self.looker.named(row)) for (seed, strength), row in tried]
        repair.attempts.append(Attempt(number, repair.regions[place], candidates, chosen))
        if chosen is not None:
            repair.pixels, repair.after = painted[chosen], candidates[chosen].scores
