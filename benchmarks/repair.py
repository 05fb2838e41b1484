"""Repair of sandbox pictures with known flaws, judged by the truth: `align repair` and three other ways at equal cost.

python -m benchmarks.repair

Each picture is a rendered scene of a held-out caption with one implausible part. Repair is as it is by default, with
fewer denoising steps. The other ways get as many candidates for each picture as repair made for it, at the same steps,
and keep the one that the same critic likes best, or the original: the whole picture through image-to-image; a disc
somewhere, of repair's area; a new picture of the caption (the best, in any case). Gold judges, and chooses nothing.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy.stats import beta
from torch import Tensor

from align.device import pick_device, set_threads
from align.evaluate import mean_interval
from align.families.load import load_model
from align.inpaint import Job, repaint
from align.masks import MaskSettings, regions_of_mask, union
from align.model import Sampling, TextToImage
from recipes.configs.filter_finetune import SamplingSettings
from recipes.configs.repair import RepairSettings
from recipes.repair_look import Looker
from recipes.repair_rounds import Repairer
from recipes.repair_state import Repair
from rewards.load import load_reward
from sandbox.flaws import FLAWS, inject
from sandbox.measure import measure, read
from sandbox.weights import WEIGHTS
from sandbox.world import SIZE_PX, Thing, lay_out, parse, render, sample_captions

SAMPLING = SamplingSettings(num_inference_steps=12, guidance_scale=3.0, batch_size=32)
WORSE, GOOD, NEAR_PX = 0.02, 0.9, 4.0
"""Gold down by this is worse; plausibility from this on is good; an object within this distance is the same one."""
FIRST_SEED = 1000
"""Of the other ways' candidates."""


@dataclass(frozen=True)
class Case:
    """A picture with a flaw, the same without it, where the flaw is, and the objects that it leaves alone."""

    text: str
    flawed: UInt8[Tensor, "3 h w"]
    clean: UInt8[Tensor, "3 h w"]
    flaw: Bool[Tensor, "h w"]
    intact: Sequence[Thing]


Way = Callable[[Sequence[Case], Sequence[Repair]], list[Tensor]]


def main() -> None:
    """Print the tables, and draw the first pictures by every way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repair")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--split", default="test", choices=("dev", "test"), help="of the sandbox's captions")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-repair.png"), help="picture of some repairs")
    arguments = parser.parse_args()
    set_threads()
    device = pick_device("auto")
    settings = RepairSettings(sampling=SAMPLING)
    model = load_model(str(WEIGHTS / "sd"), device)
    looker = Looker(load_reward("sandbox-rahf", device), settings, device)
    cases = make_cases(arguments.pictures, arguments.split)
    print_masks(cases, looker)
    repairs = [Repair(case.flawed, case.text) for case in cases]
    start = time.monotonic()
    Repairer(model, looker, settings)(repairs)
    print(f"repair: {time.monotonic() - start:.0f} s for {len(cases)} pictures")
    results = {"original": [case.flawed for case in cases], "repair": [repair.pixels for repair in repairs]}
    for name, way in other_ways(model, looker, settings).items():
        results[name] = way(cases, repairs)
    print_results(cases, results)
    print_speed(model, looker, settings, cases[:16])
    draw(arguments.out, cases, repairs, results)


def make_cases(count: int, split: str) -> list[Case]:
    """Scenes with one implausible part each, of every kind in turn."""
    generator = np.random.default_rng(51)
    kinds = [name for name, (score, _) in FLAWS.items() if score == "plausibility"]
    cases: list[Case] = []
    for index, text in enumerate(sample_captions(generator, "test" if split == "test" else "dev", count)):
        scene = lay_out(parse(text), generator)
        flawed = inject(kinds[index % len(kinds)], scene, generator)
        intact = [one for one in scene.things if not flawed.mask[_distance(one.x, one.y) <= one.radius].any()]
        flaw = torch.from_numpy(flawed.mask)
        cases.append(Case(text, _bytes(flawed.image), _bytes(render(scene)), flaw, intact))
    return cases


def print_masks(cases: Sequence[Case], looker: Looker) -> None:
    """How well the masks of the first round meet the flaws, and whether clean pictures are left alone."""
    flawed = [Repair(case.flawed, case.text) for case in cases]
    clean = [Repair(case.clean, case.text) for case in cases]
    for repairs in (flawed, clean):
        looker.look(repairs)
    masks = [union(repair.regions, SIZE_PX, SIZE_PX) for repair in flawed]
    hits = np.array([int((mask & case.flaw).sum()) for mask, case in zip(masks, cases, strict=True)])
    areas, flaws = (np.array([int(one.sum()) for one in them]) for them in (masks, [case.flaw for case in cases]))
    rows = {
        "recall of flawed pixels, mean of pictures": hits / flaws,
        "precision, where there is a mask": hits[areas > 0] / areas[areas > 0],
        "area of the mask / of the flaw": areas / flaws,
        "flawed pictures with a mask": np.array([bool(repair.regions) for repair in flawed], float),
        "clean pictures without a mask": np.array([not repair.regions for repair in clean], float),
    }
    for name, values in rows.items():
        print(f"{name:48} {_mean(values)}")
    print(f"{'area of the mask / of the flaw, median':48} {np.median(areas / flaws):.2f}")
    print(f"{'recall, all flawed pixels together':48} {hits.sum() / flaws.sum():.3f}")


def other_ways(model: TextToImage, looker: Looker, settings: RepairSettings) -> dict[str, Way]:
    """What is done instead of repairing, at the same cost."""
    sampling = Sampling(**SAMPLING.model_dump(exclude={"batch_size"}))
    whole = torch.ones(SIZE_PX, SIZE_PX, dtype=torch.bool)

    def masked(mask_of: Callable[[int, Repair], Tensor]) -> Way:
        def way(cases: Sequence[Case], repairs: Sequence[Repair]) -> list[Tensor]:
            jobs, owners = [], []
            for index, (case, repair) in enumerate(zip(cases, repairs, strict=True)):
                (region, *_) = regions_of_mask(mask_of(index, repair), MaskSettings(feather=settings.region.feather))
                for number in range(_made(repair)):
                    strength = settings.strength[number % len(settings.strength)]
                    jobs.append(Job(case.flawed, region, case.text, FIRST_SEED + number, strength, 1.0))
                    owners.append(index)
            return _best(looker, cases, owners, repaint(model, jobs, sampling, SAMPLING.batch_size), keep=True)

        return way

    def anew(cases: Sequence[Case], repairs: Sequence[Repair]) -> list[Tensor]:
        """Strengths are shares of the steps, so that this many pictures cost what the candidates cost."""
        share = sum(settings.strength) / len(settings.strength)
        owners = [index for index, one in enumerate(repairs) for _ in range(max(1, round(_made(one) * share)))]
        seeds = [FIRST_SEED + number for number in range(len(owners))]
        size, images = SAMPLING.batch_size, list[Tensor]()
        for start in range(0, len(owners), size):
            part = slice(start, start + size)
            drawn = model.sample([cases[index].text for index in owners[part]], seeds[part], sampling)
            images += list((drawn.cpu() * 255).round().to(torch.uint8))
        return _best(looker, cases, owners, images, keep=False)

    return {
        "image-to-image": masked(lambda index, repair: whole),
        "random mask": masked(lambda index, repair: _disc(index, repair)),
        "a new picture": anew,
    }


def print_results(cases: Sequence[Case], results: dict[str, list[Tensor]]) -> None:
    """Gold of every way, with intervals over pictures, and how repair differs from the others."""
    before = _gold(cases, results["original"])
    table: dict[str, np.ndarray] = {}
    print(f"{'':16} {'gold plausibility':>24} {'gain':>26} {'better':>24} {'worse':>24} {'good and all kept':>24}")
    for name, images in results.items():
        after = _gold(cases, images)
        kept = np.array([_keeps(case, image) for case, image in zip(cases, images, strict=True)])
        gain, good = after - before, (after >= GOOD) & kept
        table[name] = np.stack([gain, good.astype(float)], 1)
        shares = [_mean(values.astype(float)) for values in (gain > WORSE, gain < -WORSE, good)]
        print(f"{name:16} {_mean(after):>24} {_mean(gain, sign=True):>26} " + " ".join(f"{one:>24}" for one in shares))
    worse = int((table["repair"][:, 0] < -WORSE).sum())
    print(f"repair made {worse} of {len(cases)} worse; the share is at most {_upper(worse, len(cases)):.1%} (95 %)")
    for name in ("image-to-image", "random mask", "a new picture"):
        gain, good = (table["repair"] - table[name]).T
        print(f"repair - {name:16} gain {_mean(gain, sign=True)}, good and all kept {_mean(good, sign=True)}")


def print_speed(model: TextToImage, looker: Looker, settings: RepairSettings, cases: Sequence[Case]) -> None:
    """Pictures together, with one candidate each, beside one at a time."""
    repairer = Repairer(model, looker, settings.model_copy(update={"candidates": 1, "rounds": 1}))
    seconds = []
    for groups in ([[case] for case in cases], [cases]):
        start = time.perf_counter()
        for group in groups:
            repairer([Repair(case.flawed, case.text) for case in group])
        seconds.append(time.perf_counter() - start)
    alone, together = seconds
    print(f"{len(cases)} pictures, 1 candidate a region: {alone:.1f} s one by one, {together:.1f} s together")
    print(f"ratio {alone / together:.2f} (1.2 or more is asked)")


def draw(path: Path, cases: Sequence[Case], repairs: Sequence[Repair], results: dict[str, list[Tensor]]) -> None:
    """Ten pictures: as they were, the mask, and by every way."""
    columns = []
    for index in range(10):
        mask = union(repairs[index].tried, SIZE_PX, SIZE_PX).expand(3, -1, -1) * 255
        tiles = [cases[index].flawed, mask.to(torch.uint8), *(results[name][index] for name in list(results)[1:])]
        columns.append(torch.cat([torch.nn.functional.pad(tile, (1, 1, 1, 1), value=255) for tile in tiles], 1))
    pixels = torch.cat(columns, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    print(f"{path}: from above, the flawed pictures, repair's masks, and {', '.join(list(results)[1:])}")


def _best(
    looker: Looker, cases: Sequence[Case], owners: Sequence[int], images: Sequence[Tensor], keep: bool
) -> list[Tensor]:
    """The candidate of each picture that the critic likes best, or the original where that is as good."""
    repairs = [Repair(case.flawed, case.text) for case in cases]
    column = looker.critic.dimensions.index("plausibility")
    own = looker.score(repairs, [case.flawed for case in cases])[:, column].tolist()
    best = [(score if keep else -math.inf, case.flawed) for score, case in zip(own, cases, strict=True)]
    scores = looker.score([repairs[index] for index in owners], images)[:, column].tolist()
    for index, score, image in zip(owners, scores, images, strict=True):
        if score > best[index][0]:
            best[index] = (score, image)
    return [image for _, image in best]


def _made(repair: Repair) -> int:
    """How many candidates repair painted."""
    return sum(len(attempt.candidates) for attempt in repair.attempts)


def _disc(index: int, repair: Repair) -> Tensor:
    """A disc somewhere, of the area of the repair's masks."""
    generator = np.random.default_rng((7, index))
    area = max(int(union(repair.tried, SIZE_PX, SIZE_PX).sum()), 1)
    x, y = generator.uniform(0, SIZE_PX, 2)
    nearest = np.argsort(_distance(x, y), axis=None)[:area]
    mask = torch.zeros(SIZE_PX * SIZE_PX, dtype=torch.bool)
    mask[torch.from_numpy(nearest)] = True
    return mask.view(SIZE_PX, SIZE_PX)


def _distance(x: float, y: float) -> np.ndarray:
    """How far each pixel is from a place."""
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5
    return np.hypot(columns - x, rows - y)


def _keeps(case: Case, image: Tensor) -> bool:
    """Whether every object that the flaw left alone is still there, of its kind and in its place."""
    found = [one.thing for one in read(_float(image)).found]
    return all(
        any(one.kind == thing.kind and math.hypot(one.x - thing.x, one.y - thing.y) <= NEAR_PX for one in found)
        for thing in case.intact
    )


def _gold(cases: Sequence[Case], images: Sequence[Tensor]) -> np.ndarray:
    return np.array([measure(_float(image), case.text).plausibility for case, image in zip(cases, images, strict=True)])


def _mean(values: np.ndarray, sign: bool = False) -> str:
    mean, low, high = (float(one[0]) for one in mean_interval(torch.from_numpy(values)[:, None].double(), seed=0))
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _upper(count: int, of: int) -> float:
    """The upper end of the exact (Clopper-Pearson) interval of a share."""
    return float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0


def _bytes(image: np.ndarray) -> Tensor:
    return torch.from_numpy((image * 255).round().astype(np.uint8)).permute(2, 0, 1)


def _float(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy() / 255


if __name__ == "__main__":
    main()
