"""Several tokens for several dimensions, and for levels of the reward: what they are trained on and how judged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from align import finetune
from align.families.load import load_model
from align.log import Log
from align.lora import PROMPT_PREFIX, read_header, read_reward_token
from align.model import Sampling
from align.samples import SampleStore
from recipes import cli, reward_token
from recipes.configs.reward_token import RewardTokenConfig
from recipes.image_sources import Found
from recipes.images import Item
from recipes.judge import Judge, Judged
from recipes.run_folder import run_folder
from recipes.token_arms import ways
from recipes.token_choice import choose
from recipes.token_dimensions import effects_of
from recipes.token_plan import check_identifiers
from rewards.base import Images, Reward
from tests.recipes.test_reward_token import CPU, HELD_OUT, LORA, PROMPTS, Brightness, config_of
from tests.test_recipes import stopping
from tests.tiny import save_tiny_model


class Colours(Reward):
    """The mean of each channel."""

    dimensions = ("red", "green", "blue")
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def __call__(self, images: Images, prompts: object) -> Float[Tensor, "batch 3"]:
        return torch.stack([image.mean((1, 2)) for image in images])


class Channel(Reward):
    """The mean of one channel."""

    differentiable = True

    def __init__(self, channel: int) -> None:
        self.channel, self.dimensions = channel, (Colours.dimensions[channel],)

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def __call__(self, images: Images, prompts: object) -> Float[Tensor, "batch 1"]:
        return torch.stack([image[self.channel].mean() for image in images])[:, None]


DIMENSIONS = {"pale ": "my:C.red", "dull ": "my:C.green", "grim ": "my:C.blue"}
MANY = 16
"""Images of a prompt, so that the brightest is not the worst of some channel."""
SCHEMES: dict[str, dict[str, Any]] = {
    "dimensions": {
        "dimension_identifiers": [f"{words}={reward}" for words, reward in DIMENSIONS.items()],
        "select": {"scale": 500, "dimension_scale": 500, "negative_ratio": 1.0},
        "source": {"samples_per_prompt": MANY, "sampling": {"num_inference_steps": 2, "guidance_scale": 1.0}},
        "evaluate": {"samples_per_prompt": 2},
    },
    "levels": {"level_identifiers": ["worst ", "plain ", "best "]},
    "learned": {"identifier": "odd one. ", "embedding": {"max_train_steps": 4}},
}


def run(config: RewardTokenConfig, model_folder: Path) -> Path:
    rewards = {"my:Brightness": Brightness(), "my:Colours": Colours()}
    rewards |= {name: Channel(channel) for channel, name in enumerate(DIMENSIONS.values())}
    model, accelerator = load_model(model_folder, CPU), Accelerator(cpu=True)
    with run_folder(config.output_dir, config, "cpu", 1, accelerator) as folder:
        reward_token.run(config, model, rewards, PROMPTS, HELD_OUT, folder, accelerator)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RewardTokenConfig, Path]]:
    configs = {name: config_of(tmp_path_factory.mktemp(name) / "run", **changes) for name, changes in SCHEMES.items()}
    return {name: (config, run(config, model_folder)) for name, config in configs.items()}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "selected/metadata.jsonl").read_text().splitlines()]


def test_the_words_of_a_dimension_stand_before_images_that_fail_in_it(
    runs: dict[str, tuple[RewardTokenConfig, Path]],
) -> None:
    folder = runs["dimensions"][1]
    store, lines = SampleStore(folder / "samples"), lines_of(folder)
    colours = store.load(store.rows()).mean((2, 3)).unflatten(0, (len(PROMPTS), MANY))
    found = {(line["words"], line["prompt"]): line for line in lines}
    assert len(found) == len(lines) and {words for words, _ in found} == {"", *DIMENSIONS}
    for (words, prompt), line in found.items():
        of_prompt = colours[PROMPTS.index(prompt)]
        assert line["text"] == words + prompt
        values = of_prompt[:, [*DIMENSIONS].index(words)] if words else of_prompt.mean(1)
        assert line["score"] == pytest.approx((values.min() if words else values.max()).item())
    bad = {(line["prompt"], round(line["score"], 9)) for line in lines if line["words"]}
    assert bad.isdisjoint({(line["prompt"], round(line["score"], 9)) for line in lines if not line["words"]})


def test_every_image_of_a_prompt_has_the_words_of_its_level(runs: dict[str, tuple[RewardTokenConfig, Path]]) -> None:
    lines = lines_of(runs["levels"][1])
    words = SCHEMES["levels"]["level_identifiers"]
    assert len(lines) == 4 * len(PROMPTS)
    for prompt in PROMPTS:
        of_prompt = sorted((line["score"], line["words"]) for line in lines if line["prompt"] == prompt)
        assert [said for _, said in of_prompt] == [words[0], words[0], words[1], words[2]]
    assert all(line["text"] == line["words"] + line["prompt"] for line in lines)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_way_is_judged(scheme: str, runs: dict[str, tuple[RewardTokenConfig, Path]]) -> None:
    config, folder = runs[scheme]
    rows = json.loads((folder / "evaluation/result.json").read_text())
    assert list(dict.fromkeys((row["arm"], row["against"]) for row in rows)) == ways(config).pairs
    assert {path.name for path in (folder / "evaluation").iterdir() if (path / "samples").is_dir()} == {
        arm.name for arm in ways(config).arms
    }
    assert (folder / "control").exists() == (scheme == "learned")
    page = (folder / "report.html").read_text()
    assert all(arm.title.replace("'", "&#39;") in page for arm in ways(config).arms)


def test_the_tables_of_effects_are_those_of_the_scores(runs: dict[str, tuple[RewardTokenConfig, Path]]) -> None:
    folder = runs["dimensions"][1]
    away, asked = json.loads((folder / "evaluation/dimensions.json").read_text())
    assert (away["title"], asked["title"]) == ("my:Colours, led away from", "my:Colours, asked for")

    def means(arm: str) -> Tensor:
        store = SampleStore(folder / f"evaluation/{arm}/samples")
        return store.load(store.rows()).mean((2, 3)).double()

    without = means("tuned-without")
    for effects, kind, sign in ((away, "away", 1), (asked, "asked", -1)):
        table = torch.stack(
            [(means(f"{kind}-{words.strip()}") - without).mean(0) / without.std(0) for words in DIMENSIONS], dim=1
        )
        torch.testing.assert_close(torch.tensor(effects["means"]).double(), table, rtol=1e-3, atol=1e-4)
        for row, margin in enumerate(effects["margins"]):
            signed = sign * table[row]
            others = torch.cat([signed[:row], signed[row + 1 :]])
            assert margin["value"] == pytest.approx((signed[row] - others.max()).item(), rel=1e-2, abs=1e-4)
            assert margin["ci_low"] <= margin["value"] + 1e-9 and margin["value"] - 1e-9 <= margin["ci_high"]
    assert "own minus best other" in (folder / "report.html").read_text()


def test_the_lora_knows_what_to_ask_for_and_what_to_leave(
    runs: dict[str, tuple[RewardTokenConfig, Path]],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dimensions, levels = runs["dimensions"][1], runs["levels"][1]
    assert read_reward_token(dimensions / "lora") == dict.fromkeys(DIMENSIONS, 1.0)
    assert read_header(dimensions / "lora", PROMPT_PREFIX) == ""
    assert read_reward_token(levels / "lora") == "worst "
    assert read_header(levels / "lora", PROMPT_PREFIX) == "best "
    with safe_open(levels / LORA, framework="pt") as file:
        assert file.metadata()["align.prompt_prefix"] == "best "
    (tmp_path / "prompts.txt").write_text("a cow\n")
    command = ["generate", "--model", str(model_folder), "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]
    command += ["--lora", str(levels / "lora"), "--samples_per_prompt", "2", "--num_inference_steps", "2"]
    command += ["--guidance_scale", "3", "--seed", "1"]
    assert cli.main([*command, "--output_dir", str(tmp_path / "asked")]) == 0
    assert "'best ' stands before every prompt" in capsys.readouterr().out
    assert cli.main([*command, "--output_dir", str(tmp_path / "plain"), "--no-reward-token"]) == 0
    assert "'best '" not in capsys.readouterr().out
    judged = SampleStore(levels / "evaluation/tuned/samples")
    drawn = SampleStore(tmp_path / "asked")
    for row, other in zip(judged.rows()[:2], drawn.rows(), strict=True):
        assert (row.text, row.seed) == (other.text, other.seed) == ("a cow", row.seed)
        assert (judged.load([row]) - drawn.load([other])).abs().max() <= 1.01 / 255
    plain = SampleStore(tmp_path / "plain")
    assert (plain.load(plain.rows()) - drawn.load(drawn.rows())).abs().max() > 2 / 255


def test_a_learned_word_stands_where_the_identifier_stood(
    runs: dict[str, tuple[RewardTokenConfig, Path]], model_folder: Path, tmp_path: Path
) -> None:
    config, folder = runs["learned"]
    assert {line["words"] for line in lines_of(folder)} == {"", "<odd-one> "}
    assert read_reward_token(folder / "lora") == "<odd-one> "
    vector = load_file(folder / "lora/learned_embeds.safetensors")["<odd-one>"]
    start = load_model(model_folder, CPU).add_token("<odd-one>", config.identifier).vector
    assert 0 < (vector - start).abs().max() < 0.5
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if row["phase"] == "train"] == list(range(1, 21))
    (tmp_path / "prompts.txt").write_text("a cow\n")
    command = ["generate", "--model", str(model_folder), "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]
    command += ["--lora", str(folder / "lora"), "--samples_per_prompt", "2", "--num_inference_steps", "2"]
    assert cli.main([*command, "--guidance_scale", "3", "--seed", "1", "--output_dir", str(tmp_path / "out")]) == 0
    judged, drawn = SampleStore(folder / "evaluation/tuned/samples"), SampleStore(tmp_path / "out")
    assert (judged.load(judged.rows()[:2]) - drawn.load(drawn.rows())).abs().max() <= 1.01 / 255
    string = SampleStore(folder / "evaluation/base-string/samples")
    base = SampleStore(folder / "evaluation/base/samples")
    assert (string.load(string.rows()) - base.load(base.rows())).abs().max() > 2 / 255


def test_a_learned_word_is_counted_as_one_and_may_be_in_no_prompt(model_folder: Path, tmp_path: Path) -> None:
    model = load_model(model_folder, CPU)
    config, before = (
        config_of(tmp_path, **SCHEMES["learned"] | {"identifier": "a very long string of words "}),
        model.fingerprint,
    )
    word = "<a-very-long-string-of-words>"
    assert check_identifiers(config, model, PROMPTS) == 0
    with pytest.raises(ValueError, match=f"'{word} ' is in 1 of 1 prompts already"):
        check_identifiers(config, model, [f"a {word} cat"])
    with pytest.raises(ValueError, match="fills all the tokens"):
        check_identifiers(config_of(tmp_path, identifier=config.identifier), model, PROMPTS)
    assert model.fingerprint == before


def test_the_best_may_stand_out_where_nothing_fails_but_in_a_dimension(tmp_path: Path) -> None:
    """By the selecting reward nothing is at the bottom, which words of dimensions do not need."""
    config = config_of(tmp_path, **SCHEMES["dimensions"])
    scores = {"my:Brightness": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    scores |= {name: torch.tensor([0.0, 1.0, 1.0, 1.0]) for name in DIMENSIONS.values()}
    items = [Item(str(number), ("", ""), "a cat", Found("", None, bytes)) for number in range(4)]
    choice = choose(config, items, scores, 0)
    assert [[*group.places] for group in choice.groups] == [[3], [0], [0], [0]]


def test_a_dimension_may_be_a_hold_out_too_beside_weighted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a cat\n")
    for holdouts in (["sandbox-rahf.plausibility"], ["sandbox-clip=0.5", "sandbox-hps-2=0.5"]):
        command = ["reward-token", "--config", "sandbox_dimensions", "--dry-run", "--holdout_rewards", *holdouts]
        assert cli.main([*command, "--source.train_data_dir", "null", "--train_prompts", "prompts.txt"]) == 0
        assert "plan: 16 images of 1 prompts" in capsys.readouterr().out


@pytest.mark.parametrize("call", [3, 6])
def test_a_run_stopped_while_or_after_the_word_is_learned_ends_with_the_same_bits(
    call: int,
    runs: dict[str, tuple[RewardTokenConfig, Path]],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, whole = config_of(tmp_path / "run", **SCHEMES["learned"]), runs["learned"][1]
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "denoising_mse", stopping(finetune.denoising_mse, call))
        with pytest.raises(InterruptedError):
            run(config, model_folder)
    folder = run(config, model_folder)
    for file in (LORA, "lora/learned_embeds.safetensors", f"control/{LORA}"):
        first, second = load_file(folder / file), load_file(whole / file)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert (folder / "evaluation/result.json").read_text() == (whole / "evaluation/result.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension_identifiers": ["pale =a.b"]}, "give two or more"),
        ({"dimension_identifiers": ["pale =a.b", "pale =a.c"]}, "differ in letters or digits"),
        ({"dimension_identifiers": ["pale =a.b", "dull "]}, "'dull ' must be WORDS=REWARD"),
        ({"dimension_identifiers": ["pale =a.b=1", "dull =a.c"]}, "one reward and no weight"),
        ({"level_identifiers": ["Bad! ", "bad? "]}, "differ in letters or digits"),
        ({"identifier": "!! "}, "it must say something, in letters or digits"),
        (
            {"embedding": {"max_train_steps": 4}, "train": {"lr_warmup_steps": 4, "lr_scheduler": "cosine"}},
            "must be over before it ends",
        ),
        (
            {"regularization": {"train_data_dir": "sandbox:mix"}, "pretrained_model_name_or_path": "mine"},
            "what the model 'sandbox' was trained on",
        ),
        ({"dimension_identifiers": ["pale=a.b", "dull =a.c"]}, "'dimension_identifiers' has 'pale'.*end in a space"),
        ({"level_identifiers": ["worst ", "best"]}, "'level_identifiers' has 'best'.*end in a space"),
        ({"level_identifiers": ["worst "]}, "give two or more"),
        (
            {"level_identifiers": ["worst ", "best "], "embedding": {"max_train_steps": 4}},
            "Dimensions, levels and a learned embedding came together",
        ),
    ],
)
def test_impossible_words_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_a_dimension_with_several_scores_is_refused_before_anything_is_drawn(
    model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", dimension_identifiers=["pale =my:Colours", "dull =my:C.green"])
    with pytest.raises(ValueError, match="my:Colours gives several scores and one must select. Use my:Colours.red or"):
        run(config, model_folder)
    assert not (tmp_path / "run/samples").exists()


def test_a_dimension_in_which_nothing_fails_is_named(model_folder: Path, tmp_path: Path) -> None:
    settings = SCHEMES["dimensions"]["select"] | {"dimension_scale": 1e-6}
    config = config_of(tmp_path / "run", **SCHEMES["dimensions"] | {"select": settings})
    with pytest.raises(ValueError, match=r"By my:C.red, with select.dimension_scale 1e-06: No image is non-preferred"):
        run(config, model_folder)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"my:Brightness": torch.rand(4, 1)}, "no reward judges all of red, green, blue"),
        ({"my:Colours": torch.tensor([1.0, 0.5, 0.0]).repeat(4, 1)}, "gives all images the same red, green, blue"),
    ],
)
def test_dimensions_that_nobody_judges_have_no_tables(
    scores: dict[str, Tensor], reason: str, model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, **SCHEMES["dimensions"])
    rewards = {"my:Brightness": Brightness(), "my:Colours": Colours()}
    model, accelerator = load_model(model_folder, CPU), Accelerator(cpu=True)
    judge = Judge(model, rewards, Sampling(2, 3.0), (2, 2), Log(tmp_path), accelerator)
    tables, notes = effects_of(config, judge, {"tuned-without": Judged(SampleStore(tmp_path), [], scores, 2)}, tmp_path)
    assert not tables and reason in notes[0]
    assert not (tmp_path / "evaluation").exists()


def test_levels_that_no_group_can_fill_are_refused(model_folder: Path, tmp_path: Path) -> None:
    words = [f"level{number} " for number in range(5)]
    with pytest.raises(ValueError, match="5 levels of groups of min_group_size = 4 need 5"):
        run(config_of(tmp_path / "run", level_identifiers=words), model_folder)
