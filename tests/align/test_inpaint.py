"""Crops, colours and pasting against brute force; repairs by a tiny model and by the sandbox's own."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from align.families.load import load_model
from align.inpaint import Job, crop, crop_box, match_colours, paste, repaint, scaled, scaled_mask
from align.masks import Box, MaskSettings, Region, regions_of_mask
from align.model import Sampling, TextToImage
from sandbox import world
from sandbox.measure import measure

SANDBOX_MODEL = Path(world.__file__).parent / "weights" / "sd"
SAMPLING = Sampling(4, 3.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return (noise(3, height, width, seed=seed) * 255).to(torch.uint8)


def region(height: int, width: int, box: Box, feather: float = 0.0) -> Region:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    return regions_of_mask(mask, MaskSettings(feather=feather))[0]


class TestCropBox:
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (6, 9), (9, 5)])
    def test_is_the_smallest_move_of_a_centred_square(self, height: int, width: int) -> None:
        """For all boxes and paddings: every place of the square is tried, and the best one is what comes out."""
        rows, columns = (list(itertools.combinations(range(size + 1), 2)) for size in (height, width))
        for (top, bottom), (left, right), padding in itertools.product(rows, columns, (0, 1, 3, 20)):
            found = crop_box(Box(top, left, bottom, right), padding, height, width)
            side = min(max(bottom - top, right - left) + 2 * padding, max(height, width))
            assert (found.height, found.width) == (side, side)
            assert (found.top, found.bottom) == self.best(top, bottom, side, height)
            assert (found.left, found.right) == self.best(left, right, side, width)

    def best(self, start: int, end: int, side: int, size: int) -> tuple[int, int]:
        """The place in the image (or with equal ends beyond it) that is nearest to the centre of start and end."""
        if side > size:
            return (size - side) // 2, (size - side) // 2 + side
        place = min(range(size - side + 1), key=lambda place: abs(2 * place + side - (start + end) + 0.5))
        assert place <= start and end <= place + side
        return place, place + side


class TestCrop:
    @pytest.mark.parametrize("box", [Box(1, 2, 5, 6), Box(0, 0, 5, 7), Box(-3, 1, 9, 13), Box(-20, -20, 30, 30)])
    def test_beyond_the_image_is_its_nearest_edge(self, box: Box) -> None:
        image = noise(3, 5, 7)
        rows = torch.arange(box.top, box.bottom).clamp(0, 4)
        columns = torch.arange(box.left, box.right).clamp(0, 6)
        assert torch.equal(crop(image, box), image[:, rows][:, :, columns])


class TestScaled:
    def test_the_same_size_is_the_same_image(self) -> None:
        image = noise(3, 16, 16)
        assert torch.equal(scaled(image, 16), image)
        assert torch.equal(scaled_mask(image[0], 16), image[0])

    def test_there_and_back_keeps_a_smooth_image(self) -> None:
        rows, columns = torch.meshgrid(torch.linspace(0, 3, 12), torch.linspace(0, 2, 12), indexing="ij")
        image = (torch.stack([rows.sin(), columns.cos(), rows * columns / 6]) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(scaled(scaled(image, 40), 12), image, rtol=0, atol=0.02)
        assert bool(scaled(noise(3, 12, 12), 40).clamp(0, 1).eq(scaled(noise(3, 12, 12), 40)).all())

    def test_a_thin_mask_survives_shrinking(self) -> None:
        mask = torch.zeros(64, 64)
        mask[31] = 1
        assert torch.equal(scaled_mask(mask, 8).amax(dim=1), torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 0]))

    def test_a_mask_grows_without_leaving_0_to_1(self) -> None:
        mask = torch.zeros(8, 8)
        mask[2:5, 3:6] = 1
        large = scaled_mask(mask, 32)
        assert (float(large.min()), float(large.max())) == (0, 1)
        assert torch.equal(large.view(8, 4, 8, 4).mean(dim=(1, 3)) > 0.5, mask > 0)


class TestMatchColours:
    def test_off_the_mask_the_statistics_become_the_originals(self) -> None:
        originals, painted = noise(2, 3, 12, 12) * 0.5 + 0.2, noise(2, 3, 12, 12, seed=1) * 0.3
        masks = (noise(2, 12, 12, seed=2) > 0.6).float()
        matched = match_colours(painted, originals, masks)
        for one, original, mask in zip(matched, originals, masks, strict=True):
            for channel, wanted in zip(one[:, mask == 0], original[:, mask == 0], strict=True):
                assert float(channel.mean()) == pytest.approx(float(wanted.mean()), abs=1e-5)
                assert float(channel.std()) == pytest.approx(float(wanted.std()), rel=0.03)

    def test_a_shift_and_stretch_are_undone_on_the_mask_as_well(self) -> None:
        originals = noise(1, 3, 12, 12) * 0.6 + 0.2
        factor, shift = torch.tensor([0.7, 1.0, 1.1]).view(1, 3, 1, 1), torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1)
        matched = match_colours(originals * factor + shift, originals, noise(1, 12, 12, seed=2).round())
        torch.testing.assert_close(matched, originals, rtol=0, atol=0.005)

    def test_what_is_on_the_mask_is_not_asked(self) -> None:
        originals, painted = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
        masks = torch.zeros(1, 8, 8)
        masks[:, :4] = 0.01
        others = torch.cat([torch.ones(1, 3, 4, 8), originals[:, :, 4:]], dim=2)
        assert torch.equal(match_colours(painted, originals, masks), match_colours(painted, others, masks))

    def test_a_flat_surround_does_not_stretch_what_is_painted(self) -> None:
        originals, painted = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.4)
        painted[:, :, :2] = 0.9
        painted[:, :, 7, 7] += 0.002
        masks = torch.zeros(1, 8, 8)
        masks[:, :2] = 1
        torch.testing.assert_close(match_colours(painted, originals, masks), (painted + 0.1), rtol=0, atol=0.05)

    def test_where_all_is_masked_nothing_changes(self) -> None:
        painted = noise(2, 3, 8, 8)
        assert torch.equal(match_colours(painted, noise(2, 3, 8, 8, seed=1), torch.ones(2, 8, 8)), painted)


class TestPaste:
    @pytest.mark.parametrize("box", [Box(2, 1, 6, 5), Box(-2, 0, 9, 11), Box(0, 3, 5, 8)])
    def test_equals_blending_each_pixel(self, box: Box) -> None:
        image, painted = photo(7, 9), noise(3, box.height, box.width, seed=1)
        soft = (2 * noise(7, 9, seed=2) - 0.5).clamp(0, 1)
        before, pasted = image.clone(), paste(image, painted, soft, box)
        for row, column in itertools.product(range(7), range(9)):
            share = float(soft[row, column])
            inside = box.top <= row < box.bottom and box.left <= column < box.right
            expected = image[:, row, column].double()
            if inside and share > 0:
                expected = share * 255 * painted[:, row - box.top, column - box.left] + (1 - share) * expected
            assert (pasted[:, row, column] - expected).abs().max() <= (0.5001 if inside and share > 0 else 0)
        assert torch.equal(image, before)


class TestRepaint:
    @pytest.mark.parametrize("padding", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize(("height", "width"), [(5, 5), (16, 16), (60, 33), (20, 90)])
    def test_only_pixels_of_the_soft_mask_change(
        self, tiny_model: TextToImage, height: int, width: int, padding: float
    ) -> None:
        image = photo(height, width)
        boxes = [Box(0, 0, 2, 2), Box(height // 2, width // 3, height // 2 + 2, width), Box(1, 1, height, width // 2)]
        regions = [region(height, width, box, feather=0.05) for box in boxes]
        jobs = [Job(image, one, "a", 1, 1.0, padding) for one in regions]
        candidates = repaint(tiny_model, jobs, SAMPLING, batch_size=2)
        for candidate, one in zip(candidates, regions, strict=True):
            changed = (candidate != image).any(dim=0)
            assert candidate.dtype == torch.uint8 and candidate.shape == image.shape
            assert not bool(changed[one.soft == 0].any())
            assert bool(changed[one.mask].double().mean() > 0.9)

    def test_a_candidate_depends_neither_on_its_batch_nor_on_the_size_of_it(self, tiny_model: TextToImage) -> None:
        images = photo(20, 30), photo(40, 25, seed=1)
        jobs = [
            Job(image, region(image.shape[1], image.shape[2], Box(3, 4, 12, 15)), prompt, seed, 0.5 + seed / 4, 0.1)
            for image in images
            for prompt in ("a red circle", "two blue stars")
            for seed in (1, 2)
        ]
        together = repaint(tiny_model, jobs, SAMPLING, batch_size=3)
        alone = [repaint(tiny_model, [job], SAMPLING, batch_size=1)[0] for job in jobs]
        for one, other in zip(together, alone, strict=True):
            assert (one.int() - other.int()).abs().max() <= 1
        of_one_image = together[:4], together[4:]
        for first, second in (pair for four in of_one_image for pair in itertools.combinations(four, 2)):
            assert (first.int() - second.int()).abs().max() > 5

    def test_the_model_sees_the_region_at_its_own_resolution(self, fresh_model: TextToImage) -> None:
        sizes: list[tuple[int, ...]] = []
        fresh_model.denoiser.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape)))
        image = photo(100, 70)
        jobs = [Job(image, region(100, 70, Box(50, 50, 53, 52)), "a", seed, 0.5, 0.02) for seed in range(3)]
        repaint(fresh_model, jobs, Sampling(2, 1.0), batch_size=2)
        assert sizes == [(2, 4, 8, 8), (1, 4, 8, 8)]

    def test_what_is_pasted_is_what_the_model_paints_matched_in_colour(self, tiny_model: TextToImage) -> None:
        image, one = photo(16, 16), region(16, 16, Box(4, 5, 11, 12), feather=0.2)
        (candidate,) = repaint(tiny_model, [Job(image, one, "a star", 7, 0.9, 1.0)], SAMPLING, batch_size=1)
        original, mask = image[None].float() / 255, one.soft[None]
        painted = tiny_model.inpaint(original, mask, ["a star"], [7], 0.9, SAMPLING)
        matched = match_colours(painted, original, mask)
        assert (matched - painted).abs().max() > 0.05
        assert torch.equal(candidate, paste(image, matched[0], one.soft, Box(0, 0, 16, 16)))

    def test_no_jobs_give_no_candidates(self, tiny_model: TextToImage) -> None:
        assert repaint(tiny_model, [], SAMPLING, batch_size=2) == []

    def test_errors(self, tiny_model: TextToImage) -> None:
        job = Job(photo(8, 8), region(8, 8, Box(1, 1, 3, 3)), "a", 1, 1.0, 0.1)
        with pytest.raises(ValueError, match="padding is 1.5"):
            Job(job.image, job.region, "a", 1, 1.0, padding=1.5)
        with pytest.raises(ValueError, match="batch_size is 0"):
            repaint(tiny_model, [job], SAMPLING, 0)
        with pytest.raises(ValueError, match=r"image of \(9, 8\) came with a region of \(8, 8\)"):
            Job(photo(9, 8), job.region, "a", 1, 1.0, 0.1)

    def test_pixels_that_are_not_finite_are_refused(self, fresh_model: TextToImage) -> None:
        with torch.no_grad():
            next(fresh_model.denoiser.parameters()).fill_(torch.nan)
        job = Job(photo(8, 8), region(8, 8, Box(1, 1, 3, 3)), "a star", 1, 1.0, 0.1)
        with pytest.raises(ValueError, match="not finite, among the repairs of 'a star'"):
            repaint(fresh_model, [job], SAMPLING, 1)


@pytest.fixture(scope="module")
def sandbox_model() -> TextToImage:
    return load_model(SANDBOX_MODEL, torch.device("cpu"))


# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
class TestSandbox:
    @pytest.mark.parametrize(
        "text", ["a small blue square left of a large yellow star on a grey background",
                 "three small green circles on a black background"],
    )  # fmt: skip
    def test_a_bar_across_an_object_is_repaired(self, sandbox_model: TextToImage, text: str) -> None:
        scene = world.lay_out(world.parse(text), np.random.default_rng(0))
        thing = scene.things[0]
        x, y, radius = int(thing.x), int(thing.y), int(thing.radius)
        picture = world.render(scene)
        picture[y - 2 : y + 5, x - radius : x + radius] = 0.3
        image = torch.from_numpy((picture * 255).round().astype(np.uint8)).permute(2, 0, 1)
        bar = region(64, 64, Box(y - 3, x - radius - 1, y + 6, x + radius + 1), feather=0.05)
        jobs = [Job(image, bar, text, seed, strength=0.6, padding=1.0) for seed in range(4)]
        candidates = repaint(sandbox_model, jobs, Sampling(15, 5.0), batch_size=4)
        assert self.plausibility(image, text) < 0.1
        assert max(self.plausibility(candidate, text) for candidate in candidates) > 0.8

    def plausibility(self, image: Tensor, text: str) -> float:
        return measure(image.permute(1, 2, 0).double().numpy() / 255, text).plausibility
