"""Rounds of repair on pictures in memory: only what glows changes, and nothing is taken that is not better."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.families.load import load_model
from align.masks import union
from align.model import TextToImage
from recipes.configs.filter_finetune import SamplingSettings
from recipes.configs.mask_settings import MaskGroup
from recipes.configs.repair import RepairSettings
from recipes.repair_look import MAX_PIXELS, Looker, by_pixels
from recipes.repair_rounds import Repairer
from recipes.repair_state import Repair, choose
from rewards.base import Reward
from rewards.load import load_reward
from tests.recipes.own_magenta import CRITIC
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
KINDS = {"SD 1.x": ("epsilon", 0, 4), "SD 2.x, v": ("v_prediction", 1, 4), "9 channels": ("epsilon", 2, 9)}

# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

Make = Callable[..., Repairer]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("kind"), *KINDS[request.param]), CPU)


@pytest.fixture
def critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reward]:
    (tmp_path / "own_magenta.py").write_text(CRITIC)
    monkeypatch.chdir(tmp_path)
    yield load_reward("own_magenta:Magenta", CPU)


@pytest.fixture
def make(model: TextToImage, critic: Reward) -> Make:
    """A repairer with settings of the test's own."""

    def made(own_masks: bool = False, **changes: Any) -> Repairer:
        few = SamplingSettings(num_inference_steps=2, guidance_scale=1.0, batch_size=4)
        given: dict[str, Any] = {"sampling": few, "candidates": 2, "tolerance": 1.0, "min_gain": 0.0}
        settings = RepairSettings(**given | changes)
        return Repairer(model, Looker(critic, settings, CPU, own_masks), settings)

    return made


def picture(height: int, width: int, *spots: tuple[int, int, int]) -> Tensor:
    """Noise, with magenta squares at (top, left, side)."""
    pixels = (torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)) * 200).to(torch.uint8)
    for top, left, side in spots:
        pixels[:, top : top + side, left : left + side] = torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None, None]
    return pixels


def test_what_glows_is_repainted_and_all_else_stays(make: Make) -> None:
    pictures = [picture(32, 32, (4, 5, 6)), picture(60, 90, (10, 10, 8), (40, 70, 10)), picture(20, 20)]
    repairs = [Repair(pixels, "a red circle") for pixels in pictures]
    make()(repairs)
    for repair, original in zip(repairs, pictures, strict=True):
        changed = (repair.pixels != original).any(dim=0)
        soft = [region.soft > 0 for region in repair.tried]
        allowed = torch.stack(soft).any(dim=0) if soft else torch.zeros_like(changed)
        assert not bool((changed & ~allowed).any())
    assert [len(repair.attempts) for repair in repairs] == [1, 2, 0]
    assert [repair.is_changed for repair in repairs] == [True, True, False]
    assert all(repair.after["plausibility"] == 1.0 for repair in repairs)
    assert repairs[1].before["plausibility"] == pytest.approx(1 - (64 + 100) / 5400)
    assert repairs[2].before == repairs[2].after


def test_pictures_share_batches_and_come_out_as_alone(make: Make) -> None:
    pictures = [picture(32, 32, (4, 5, 6)), picture(40, 30, (20, 10, 8))]
    together = [Repair(pixels, "a star") for pixels in pictures]
    make()(together)
    for pixels, repair in zip(pictures, together, strict=True):
        alone = Repair(pixels, "a star")
        make()([alone])
        assert (alone.pixels.int() - repair.pixels.int()).abs().max() <= 1
        assert [attempt.chosen for attempt in alone.attempts] == [attempt.chosen for attempt in repair.attempts]


def test_a_second_round_treats_what_still_glows(make: Make) -> None:
    """With one region a round, each round takes the next one, with other seeds; then nothing glows."""
    spots = [(4, 4, 8), (40, 8, 7), (12, 44, 6)]
    repair = Repair(picture(64, 64, *spots), "a star")
    make(rounds=5, region=MaskGroup(top_k=1))([repair])
    assert [attempt.round for attempt in repair.attempts] == [0, 1, 2]
    for attempt, (top, left, side) in zip(repair.attempts, spots, strict=True):
        assert bool(attempt.region.mask[top : top + side, left : left + side].all())
    assert [candidate.seed for attempt in repair.attempts for candidate in attempt.candidates] == [0, 1, 2, 3, 4, 5]
    assert repair.ended and repair.after["plausibility"] == 1.0


def test_what_is_not_better_by_enough_is_not_taken_and_ends_it(make: Make) -> None:
    original = picture(32, 32, (4, 5, 6))
    repair = Repair(original, "a star")
    make(rounds=4, min_gain=0.5)([repair])
    assert torch.equal(repair.pixels, original)
    assert len(repair.attempts) == 1 and repair.attempts[0].chosen is None
    assert repair.before == repair.after


def test_no_other_score_may_fall(make: Make) -> None:
    """Magenta is bright; the tiny model paints darker or lighter, and with no tolerance only lighter is taken."""
    original = picture(32, 32, (4, 5, 20))
    strict, lax = Repair(original, "a star"), Repair(original, "a star")
    make(tolerance=0.0)([strict])
    make(tolerance=1.0)([lax])
    assert lax.is_changed
    assert strict.after["brightness"] >= strict.before["brightness"]


def test_the_users_mask_says_all(make: Make) -> None:
    original = picture(32, 32, (4, 5, 6))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3:12, 4:9] = True
    repair = Repair(original, "a star", mask)
    make(own_masks=True, region=MaskGroup(feather=0.0))([repair])
    assert torch.equal(union(repair.tried, 32, 32), mask)
    assert not bool((repair.pixels != original).any(dim=0)[~mask].any())


def test_the_users_mask_limits_heat(make: Make) -> None:
    original = picture(32, 32, (4, 5, 6), (20, 20, 6))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16:, 16:] = True
    repair = Repair(original, "a star", mask)
    make()([repair])
    changed = (repair.pixels != original).any(dim=0)
    assert bool(changed[20:26, 20:26].any()) and not bool(changed[~mask].any())


@pytest.mark.parametrize(("size", "padding"), [((8, 8), 1.0), ((30, 8), 1 / 16)])
def test_larger_pictures_are_repainted_in_crops(
    make: Make, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], padding: float
) -> None:
    repairer, jobs = make(candidates=1), []
    monkeypatch.setattr(
        "recipes.repair_rounds.repaint", lambda model, given, *rest: jobs.extend(given) or [j.image for j in given]
    )
    assert repairer.model.resolution in range(8, 30)
    repairer([Repair(picture(*size, (2, 2, 4)), "a star")])
    assert [job.padding for job in jobs] == [padding]


def test_candidates_take_the_strengths_in_turn_and_misaligned_words_come_first(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(
        "recipes.repair_rounds.repaint", lambda model, given, *rest: jobs.extend(given) or [j.image for j in given]
    )
    make(candidates=3, strength=[0.5, 1.0], seed=7, sharpen=True)([Repair(picture(16, 16, (2, 2, 4)), "a star")])
    assert [(job.seed, job.strength, job.prompt) for job in jobs] == [
        (7, 0.5, "a, a star"),
        (8, 1.0, "a, a star"),
        (9, 0.5, "a, a star"),
    ]


def test_the_choice_is_the_best_that_may_be_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        scores = torch.randint(0, 5, (4, 3), generator=generator) / 4
        original = [float(value) for value in torch.randint(0, 5, (3,), generator=generator) / 4]
        found = choose(scores, original[1] + 0.1, original, 0.25, 1)
        allowed = [
            (-row[1], index)
            for index, row in enumerate(scores.tolist())
            if row[1] > original[1] + 0.1 and all(row[c] >= original[c] - 0.25 for c in (0, 2))
        ]
        assert found == (min(allowed)[1] if allowed else None)


def test_pictures_are_looked_at_together_as_long_as_they_are_small() -> None:
    sides = [1000, 1000, 4096, 10, 10, 10]
    pictures = [torch.zeros(3, 1, 1).expand(3, side, side) for side in sides]
    groups = [[len(one[0]) for one in group] for group in by_pixels(pictures, lambda one: one, at_most=2)]
    assert groups == [[1000, 1000], [4096], [10, 10], [10]]
    assert all(sum(side**2 for side in group) <= MAX_PIXELS or len(group) == 1 for group in groups)
    assert list(itertools.chain(*groups)) == sides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heatmap": "flaws"}, "draws implausibility, nothing, and no flaws. Name one, or both"),
        ({"objective": "beauty"}, "objective 'beauty' is none of the critic's scores: plausibility, brightness"),
    ],
)
def test_names_that_the_critic_does_not_have_are_refused(make: Make, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_critic_without_heatmaps_needs_masks() -> None:
    clip, settings = load_reward("sandbox-clip", CPU), RepairSettings(objective="overall")
    with pytest.raises(ValueError, match="draws no heatmaps"):
        Looker(clip, settings, CPU)
    looker = Looker(clip, settings, CPU, own_masks=True)
    repair = Repair(picture(64, 64), "a red circle", torch.eye(64, dtype=torch.bool))
    looker.look([repair])
    assert list(repair.before) == ["overall"] and len(repair.regions) == 1
