"""Generation: which image has which seed, and a run that was killed ends as one that was not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from align import samples
from align.generate import generate, image_seed
from align.log import Log
from align.model import LearnedToken, Sampling, TextToImage
from align.samples import SampleStore, prompt_id

PROMPTS = ("a red circle", "two blue stars", "a green square")
SAMPLING = Sampling(4, 3.0)


@final
class FakeModel(TextToImage):
    """Noise from the seed, coloured by the prompt and, a little, by the whole micro-batch, as rounding is."""

    def __init__(self, fail_at: int | None = None, fingerprint: str = "f" * 16) -> None:
        self.device, self.resolution, self.denoiser = torch.device("cpu"), 4, nn.Identity()
        self.batches: list[list[tuple[str, int]]] = []
        self._fail_at, self._fingerprint = fail_at, fingerprint

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Float[Tensor, "batch 3 h w"]:
        if len(self.batches) == self._fail_at:
            raise KeyboardInterrupt
        self.batches.append(list(zip(prompts, seeds, strict=True)))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.rand(3, 4, 4, generator=generator) for generator in generators])
        colour = torch.tensor([len(prompt) / 100 for prompt in prompts]).view(-1, 1, 1, 1)
        return (noise * 0.5 + colour + sum(seeds) % 1000 / 10_000).clamp(0, 1)

    def inpaint(
        self,
        images: Tensor,
        masks: Tensor,
        prompts: Sequence[str],
        seeds: Sequence[int],
        strength: float,
        sampling: Sampling,
    ) -> Tensor:
        raise NotImplementedError

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens dim"]:
        raise NotImplementedError

    def count_truncated(self, prompts: Sequence[str]) -> int:
        raise NotImplementedError

    def add_token(self, token: str, start: str | Float[Tensor, " dim"]) -> LearnedToken:
        raise NotImplementedError

    def remove_token(self, token: str) -> None:
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_latents(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Int[Tensor, " batch"]) -> Tensor:
        raise NotImplementedError

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Int[Tensor, " batch"], embeddings: Tensor) -> Tensor:
        raise NotImplementedError

    def target(self, latents: Tensor, noise: Tensor, timesteps: Int[Tensor, " batch"]) -> Tensor:
        raise NotImplementedError


Run = Callable[[TextToImage, Path], SampleStore]


@pytest.fixture
def run(log: Log, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Five images of each of three prompts, in shards of six, three at a time."""
    monkeypatch.setattr(samples, "SHARD_SIZE", 6)
    return lambda model, folder: generate(model, PROMPTS, 5, folder, 42, 3, SAMPLING, log, Accelerator(cpu=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestSeeds:
    def test_never_change(self) -> None:
        # Written down once: a seed in an old metadata.jsonl must still make its image.
        assert image_seed(42, "8cbf502735c9b035", 0) == 5238286667041614
        assert image_seed(42, "8cbf502735c9b035", 1) == 7807143465440848

    def test_are_below_2_to_the_53_and_all_different(self) -> None:
        seeds = [image_seed(run, prompt_id(f"{prompt}"), index)
                 for run in range(3) for prompt in range(200) for index in range(20)]  # fmt: skip
        assert len(set(seeds)) == len(seeds)
        assert all(0 <= seed < 2**53 for seed in seeds)
        assert np.mean(seeds) / 2**52 == pytest.approx(1, abs=0.05)


class TestGenerate:
    def test_makes_each_sample_of_each_prompt_in_order(self, run: Run, tmp_path: Path) -> None:
        model = FakeModel()
        rows = run(model, tmp_path / "a").rows()
        expected = [(prompt, image_seed(42, prompt_id(prompt), index)) for prompt in PROMPTS for index in range(5)]
        assert [(row.text, row.seed) for row in rows] == expected
        assert [pair for batch in model.batches for pair in batch] == expected
        assert [row.sample_index for row in rows] == [0, 1, 2, 3, 4] * 3
        assert {row.model for row in rows} == {model.fingerprint}

    def test_a_micro_batch_stays_in_its_shard(self, run: Run, tmp_path: Path, log: Log) -> None:
        model = FakeModel()
        run(model, tmp_path / "a")
        assert [len(batch) for batch in model.batches] == [3] * 5
        model = FakeModel()
        generate(model, PROMPTS, 5, tmp_path / "b", 42, 4, SAMPLING, log, Accelerator(cpu=True))
        assert [len(batch) for batch in model.batches] == [4, 2, 4, 2, 3]

    def test_images_are_those_of_the_model(self, run: Run, tmp_path: Path) -> None:
        model = FakeModel()
        store = run(model, tmp_path / "a")
        prompts, seeds = zip(*model.batches[1], strict=True)
        expected = model.sample(prompts, seeds, SAMPLING)
        torch.testing.assert_close(store.load(store.rows()[3:6]), expected, rtol=0, atol=0.5 / 255 + 1e-6)

    def test_a_repeated_prompt_counts_once(self, run: Run, tmp_path: Path, log: Log) -> None:
        run(FakeModel(), tmp_path / "a")
        generate(FakeModel(), [*PROMPTS, PROMPTS[0]], 5, tmp_path / "b", 42, 3, SAMPLING, log, Accelerator(cpu=True))
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_a_finished_run_asks_the_model_nothing(self, run: Run, tmp_path: Path) -> None:
        run(FakeModel(), tmp_path / "a")
        before = contents(tmp_path / "a")
        again = FakeModel()
        run(again, tmp_path / "a")
        assert again.batches == []
        assert contents(tmp_path / "a") == before

    def test_images_that_are_not_finite_are_refused_and_not_written(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakeModel, "sample", lambda *_: torch.full((3, 3, 4, 4), torch.nan))
        with pytest.raises(ValueError, match="not finite, among the images of 'a red circle'.* float32"):
            run(FakeModel(), tmp_path / "a")
        assert not list((tmp_path / "a").glob("*/*.png"))

    @pytest.mark.parametrize(
        ("prompts", "samples_per_prompt", "batch_size", "message"),
        [
            ([], 1, 1, "There are no prompts"),
            (["a", "  "], 1, 1, "One of the prompts is empty"),
            (["a"], 0, 1, "samples_per_prompt is 0"),
            (["a"], 1, 0, "batch_size is 0"),
        ],
    )
    def test_bad_input_touches_nothing(
        self, tmp_path: Path, log: Log, prompts: list[str], samples_per_prompt: int, batch_size: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            generate(
                FakeModel(),
                prompts,
                samples_per_prompt,
                tmp_path / "a",
                0,
                batch_size,
                SAMPLING,
                log,
                Accelerator(cpu=True),
            )
        assert not (tmp_path / "a").exists()


class TestKilled:
    """A run is stopped somewhere, and the same command is given again."""

    @pytest.fixture
    def whole(self, run: Run, tmp_path: Path) -> dict[str, bytes]:
        """What a run leaves that nobody stopped."""
        run(FakeModel(), tmp_path / "whole")
        return contents(tmp_path / "whole")

    @pytest.mark.parametrize("batch", range(5))
    def test_in_the_model_at_any_micro_batch(
        self, run: Run, tmp_path: Path, whole: dict[str, bytes], batch: int
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(FakeModel(fail_at=batch), tmp_path / "a")
        again = FakeModel()
        run(again, tmp_path / "a")
        assert len(again.batches) == 5 - batch
        assert contents(tmp_path / "a") == whole

    @pytest.mark.parametrize("write", range(19))
    def test_at_any_write(
        self, run: Run, tmp_path: Path, whole: dict[str, bytes], write: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """15 images, and for each of 3 shards the metadata and the marker, less the last: each rename in turn."""
        replace, done = samples.atomic_path, iter(range(write))

        def stopping(path: Path) -> object:
            if next(done, None) is None:
                raise KeyboardInterrupt
            return replace(path)

        with monkeypatch.context() as patch:
            patch.setattr(samples, "atomic_path", stopping)
            with pytest.raises(KeyboardInterrupt):
                run(FakeModel(), tmp_path / "a")
        assert contents(tmp_path / "a") != whole
        run(FakeModel(), tmp_path / "a")
        assert contents(tmp_path / "a") == whole

    def test_with_a_torn_image(self, run: Run, tmp_path: Path, whole: dict[str, bytes]) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(FakeModel(fail_at=3), tmp_path / "a")
        torn = sorted((tmp_path / "a" / "00001").glob("*.png"))[1]
        torn.write_bytes(torn.read_bytes()[:-8])
        again = FakeModel()
        run(again, tmp_path / "a")
        assert len(again.batches) == 3  # the one with the torn image, and the two that were never made
        assert contents(tmp_path / "a") == whole

    def test_with_the_real_model(
        self, tiny_model: TextToImage, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(samples, "SHARD_SIZE", 6)

        def real(folder: Path) -> None:
            generate(tiny_model, PROMPTS[:2], 4, folder, 7, 3, SAMPLING, log, Accelerator(cpu=True))

        real(tmp_path / "whole")
        sample, done = type(tiny_model).sample, iter(range(2))

        def stopping(*arguments: object) -> object:
            if next(done, None) is None:
                raise KeyboardInterrupt
            return sample(*arguments)  # pyright: ignore[reportArgumentType]

        with monkeypatch.context() as patch:
            patch.setattr(type(tiny_model), "sample", stopping)
            with pytest.raises(KeyboardInterrupt):
                real(tmp_path / "a")
        real(tmp_path / "a")
        assert contents(tmp_path / "a") == contents(tmp_path / "whole")


class TestAnotherExperiment:
    @pytest.fixture
    def folder(self, run: Run, tmp_path: Path) -> Path:
        run(FakeModel(), tmp_path / "a")
        return tmp_path / "a"

    CHANGES: ClassVar[dict[str, dict[str, Any]]] = {
        "model was ffffffffffffffff, is eeeeeeeeeeeeeeee": {"model": FakeModel(fingerprint="e" * 16)},
        "images was 15, is 10; prompts was 3, is 2": {"prompts": PROMPTS[:2]},
        "prompts_digest was [0-9a-f]{16}, is [0-9a-f]{16}. Go": {"prompts": PROMPTS[::-1]},
        "samples_per_prompt was 5, is 6": {"samples_per_prompt": 6},
        "seed was 42, is 43": {"seed": 43},
        "num_inference_steps was 4, is 5": {"sampling": Sampling(5, 3.0)},
        "guidance_scale was 3.0, is 3.5": {"sampling": Sampling(4, 3.5)},
        "negative_prompt was , is grey": {"sampling": Sampling(4, 3.0, "grey")},
        "scheduler was None, is DDIMScheduler": {"sampling": Sampling(4, 3.0, scheduler="DDIMScheduler")},
    }

    @pytest.mark.parametrize("difference", CHANGES)
    def test_is_refused_with_the_difference_and_changes_nothing(self, folder: Path, log: Log, difference: str) -> None:
        before = contents(folder)
        settings: dict[str, Any] = {
            "model": FakeModel(),
            "prompts": PROMPTS,
            "samples_per_prompt": 5,
            "seed": 42,
            "sampling": SAMPLING,
        }
        with pytest.raises(ValueError, match=difference):
            generate(
                **(settings | self.CHANGES[difference]),
                folder=folder,
                batch_size=3,
                log=log,
                accelerator=Accelerator(cpu=True),
            )
        assert contents(folder) == before

    def test_another_batch_size_is_none(self, folder: Path, log: Log) -> None:
        model = FakeModel()
        generate(model, PROMPTS, 5, folder, 42, 2, SAMPLING, log, Accelerator(cpu=True))
        assert model.batches == []
