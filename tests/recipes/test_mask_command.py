"""`align mask` as it is typed: a critic's heatmap or one from a file, as a mask that other tools read."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align.masks import MaskSettings, find_regions
from recipes.cli import main
from recipes.configs.mask import MaskConfig
from recipes.configs.mask_settings import MaskGroup
from recipes.mask import read_heatmap
from recipes.settings import leaf_fields
from rewards.base import Critic
from rewards.image_file import read_image
from rewards.load import load_reward

Said = tuple[int, str, str]
CRITIC = ("--critic", "clip-gradient", "--prompt", "a red circle", "--device", "cpu")


@pytest.fixture
def mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Types the command in a folder with a picture, a heatmap with one hot square, and a cold one."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save("picture.png")
    heat = np.zeros((60, 80), np.uint8)
    Image.fromarray(heat).save("cold.png")
    heat[20:30, 40:55] = 255
    Image.fromarray(heat).save("hot.png")

    def typed(*arguments: str) -> Said:
        code = main(["mask", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


def _pixels(path: str = "mask.png") -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_the_settings_are_those_of_masks() -> None:
    assert MaskGroup().model_dump() == dataclasses.asdict(MaskSettings())


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in ("threshold", "floor", "max_area") for value in (0.0, 1.0, 1.1)]
    + [(field, value) for field in ("min_area", "dilation", "feather") for value in (-0.1, 0.0, 1.0, 1.1)]
    + [("border", -0.1), ("border", 0.0), ("border", 0.5), ("top_k", 0), ("top_k", 1)],
)
def test_the_bounds_are_those_of_masks(field: str, value: float) -> None:
    assert _takes(MaskGroup, field, value) == _takes(MaskSettings, field, value)


def _takes(kind: Callable[..., object], field: str, value: float) -> bool:
    try:
        kind(**{field: value})
    except ValueError:
        return False
    return True


def test_a_heatmap_becomes_a_mask(mask: Callable[..., Said]) -> None:
    options = ("--is_heatmap", "--mask.dilation", "0.03", "--mask.feather", "0.05")
    code, out, _ = mask("hot.png", *options)
    settings = MaskSettings(dilation=0.03, feather=0.05)
    (region,) = find_regions(read_heatmap(Path("hot.png")), settings)
    assert (code, out) == (0, f"mask.png: 1 region, {region.mask.float().mean():.1%} of the picture.\n")
    assert np.array_equal(_pixels(), region.mask.numpy() * np.uint8(255))
    assert _pixels()[20:30, 40:55].min() == 255
    assert mask("hot.png", *options, "--soft", "--out", "masks/soft.png")[0] == 0
    soft = _pixels("masks/soft.png")
    assert np.array_equal(soft, (region.soft * 255).round().byte().numpy())
    assert ((soft > 0) & (soft < 255)).any()


def test_of_several_regions_all_are_in_the_mask(mask: Callable[..., Said]) -> None:
    heat = np.zeros((60, 80), np.uint8)
    heat[5:15, 5:15] = heat[40:50, 60:70] = 255
    Image.fromarray(heat).save("two.png")
    for options in ((), ("--soft",)):
        assert "2 regions" in mask("two.png", "--is_heatmap", *options)[1]
        assert _pixels()[heat == 255].min() == 255
        assert _pixels()[20:35].max() == 0


def test_without_a_flaw_the_mask_is_black(mask: Callable[..., Said]) -> None:
    for options in ((), ("--soft",)):
        code, out, _ = mask("cold.png", "--is_heatmap", *options)
        assert code == 0
        assert "No flaw found" in out and "(most heat: 0.00). mask.png is all black." in out
        assert _pixels().shape == (60, 80)
        assert _pixels().max() == 0


@pytest.mark.parametrize("heatmap", ["implausibility", "misalignment", "both"])
def test_a_critic_is_asked(mask: Callable[..., Said], heatmap: str) -> None:
    code, out, _ = mask("picture.png", *CRITIC, "--heatmap", heatmap, "--mask.min_area", "0")
    assert code == 0
    assert "clip-gradient: arXiv 2312.10240" in out
    critic = load_reward("clip-gradient", torch.device("cpu"))
    assert isinstance(critic, Critic)
    heatmaps = critic.critique(read_image(Path("picture.png"))[None], ["a red circle"]).heatmaps
    regions = find_regions(heatmaps["misalignment"][0], MaskSettings(min_area=0.0))
    assert regions
    assert np.array_equal(_pixels() == 255, torch.stack([region.mask for region in regions]).any(0).numpy())


def test_a_mask_of_ours_is_replaced_and_nothing_else(mask: Callable[..., Said], tmp_path: Path) -> None:
    assert mask("hot.png", "--is_heatmap")[0] == 0
    assert mask("cold.png", "--is_heatmap")[0] == 0
    assert _pixels().max() == 0
    (tmp_path / "notes.png").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for out in ("picture.png", "hot.png", "notes.png", "folder.png"):
        before = (tmp_path / out).read_bytes() if (tmp_path / out).is_file() else None
        code, _, err = mask("hot.png", "--is_heatmap", "--out", out)
        assert (code, err) == (
            1,
            f"error: {out} was not written by align mask and would be overwritten. Give another --out.\n",
        )
        assert ((tmp_path / out).read_bytes() if before is not None else None) == before
    assert mask("mask.png", "--is_heatmap")[0] == 1  # its own input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("picture.png",), "give --prompt, or --is_heatmap"),
        (("picture.png", "--prompt", " "), "give --prompt, or --is_heatmap"),
        (("hot.png", "--is_heatmap", "--prompt", "x"), "--is_heatmap and --prompt came together"),
        (("hot.png", "--is_heatmap", "--out", "mask.jpg"), "--out mask.jpg must end in .png"),
        (("none.png", "--is_heatmap"), "none.png: No such file"),
        (("empty.png", "--is_heatmap"), "empty.png: The file is empty"),
        (("empty.png", *CRITIC), "empty.png: The file is empty"),
        (("picture.png", "--is_heatmap"), "picture.png has colours or transparent parts; a heatmap is a grey picture"),
        (("clear.png", "--is_heatmap"), "clear.png has colours or transparent parts"),
        (
            ("picture.png", *CRITIC, "--heatmap", "gore"),
            "draws implausibility, misalignment, and no gore. Name one, or both",
        ),
        (
            ("picture.png", "--critic", "sandbox-clip", "--prompt", "x", "--device", "cpu"),
            "The critic draws no heatmaps, so it does not say where a picture is wrong",
        ),
        (("picture.png", "--critic", "sandbox-clop", "--prompt", "x"), "Nearest names: sandbox-clip"),
        (("hot.png", "--is_heatmap", "--mask.floor", "2"), "--mask.floor: input should be less than or equal to 1"),
        (("hot.png", "--is_heatmap", "--mask.flor", "1"), "--mask.floor"),
    ],
)
def test_a_mistake_is_a_line(mask: Callable[..., Said], tmp_path: Path, arguments: tuple[str], message: str) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("LA", (8, 8)).save(tmp_path / "clear.png")
    code, _, err = mask(*arguments)
    assert code == 1
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "mask.png").exists()


def test_a_dry_run_writes_nothing(mask: Callable[..., Said], tmp_path: Path) -> None:
    code, out, _ = mask("picture.png", *CRITIC, "--dry-run")
    assert code == 0
    assert "top_k: 3" in out and "plan: the mask of picture.png, into mask.png" in out
    assert not (tmp_path / "mask.png").exists()


PAGE = Path(__file__).parents[2] / "docs" / "mask.md"


def test_the_page_has_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (required|`[^`]*`) \|", PAGE.read_text(), re.M)
    defaults = {
        key: "required" if field.is_required() else f"`{field.default}`".replace("None", "null")
        for key, field in leaf_fields(MaskConfig).items()
    }
    assert dict(rows) == defaults


def test_the_page_s_python_runs(mask: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "picture.png").rename("broken.png")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mask"].shape == (60, 80)
