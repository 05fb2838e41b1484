"""`align repair` as a user types it: what is written, skipped, continued and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cli import main
from tests.recipes.own_magenta import CRITIC, MAGENTA
from tests.recipes.own_red import Said

# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

FEW = (
    "--tolerance", "1", "--min_gain", "0", "--candidates", "2",
    "--sampling.num_inference_steps", "3", "--sampling.guidance_scale", "1", "--device", "cpu",
)  # fmt: skip
TEXT = "a large red circle on a grey background"


def spoilt(path: Path, spot: int = 12) -> np.ndarray:
    """A grey picture with a red square and, unless `spot` is 0, a magenta one; written to the path."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[10:30, 10:30] = (220, 30, 30)
    pixels[40 : 40 + spot, 36 : 36 + spot] = MAGENTA
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A flawed and a clean picture in `photos`, and the critic."""
    (tmp_path / "photos").mkdir()
    spoilt(tmp_path / "photos/a.png")
    spoilt(tmp_path / "photos/b.png", spot=0)
    (tmp_path / "own_magenta.py").write_text(CRITIC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def repair(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Types the command; its exit code, output and errors."""

    def typed(*arguments: str, images: tuple[str, ...] = ("photos",), prompt: tuple[str, ...] = (TEXT,)) -> Said:
        texts = [part for text in prompt for part in ("--prompt", text)]
        critic = () if "--critic" in arguments else ("--critic", "own_magenta:Magenta")
        code = main(["repair", "--image", *images, *texts, *critic, *FEW, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


def test_a_flaw_goes_and_nothing_else_changes(repair: Callable[..., Said], place: Path) -> None:
    code, out, err = repair()
    assert code == 0, err
    before = np.asarray(Image.open("photos/a.png"))
    after = np.asarray(Image.open("repaired/images/a.png"))
    record = json.loads(Path("repaired/details/a.png/repair.json").read_text())
    mask = np.asarray(Image.open("repaired/details/a.png/mask.png")) > 0
    assert mask[40:52, 36:52].mean() > 0.7 and not mask[:35].any()
    changed = (before != after).any(axis=2)
    left, top, right, bottom = record["attempts"][0]["box"]
    assert changed[40:52, 36:48].all()
    changed[top:bottom, left:right] = False
    assert not changed.any()
    assert record["verdict"] == "repaired" and record["after"]["plausibility"] > 0.99
    assert record["before"]["plausibility"] == pytest.approx(1 - 144 / 4096)
    assert [candidate["seed"] for candidate in record["attempts"][0]["candidates"]] == [0, 1]
    assert Path("repaired/images/b.png").read_bytes() == Path("photos/b.png").read_bytes()
    assert "photos/b.png: no flaw found" in out and "photos/a.png: repaired" in out
    assert np.asarray(Image.open("repaired/details/a.png/strip.png")).shape == (256, 4 * 256 + 3 * 4, 3)
    page = Path("repaired/report.html").read_text()
    assert page.count("data:image") >= 2 and "a.png" in page
    summary = json.loads(Path("repaired/summary.json").read_text())
    assert [row["verdict"] for row in summary["pictures"]] == ["repaired", "no flaw found"]


def test_the_same_command_does_nothing_twice_and_other_settings_are_refused(
    repair: Callable[..., Said], place: Path
) -> None:
    repair()
    written = {path: path.stat().st_mtime_ns for path in Path("repaired/images").iterdir()}
    code, out, _ = repair()
    assert code == 0 and "photos/a.png: repaired" in out
    assert {path: path.stat().st_mtime_ns for path in Path("repaired/images").iterdir()} == written
    code, _, err = repair("--seed", "3")
    assert code == 1 and "holds a repair of photos/a.png with other settings" in err
    spoilt(place / "photos/c.png")
    assert repair()[0] == 0
    assert Path("repaired/images/c.png").exists()
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_bad_file_is_named_and_the_rest_goes_on(repair: Callable[..., Said], place: Path) -> None:
    (place / "photos/0.png").write_bytes((place / "photos/a.png").read_bytes()[:90])
    code, out, err = repair()
    assert code == 0
    assert "photos/0.png is left out: " in err
    assert "photos/a.png: repaired" in out and not Path("repaired/images/0.png").exists()
    assert list(json.loads(Path("repaired/summary.json").read_text())["problems"]) == ["photos/0.png"]
    code, _, err = repair("--out", "other", images=("photos/0.png",))
    assert code == 1 and "None of the 1 pictures could be repaired" in err
    spoilt(place / "photos/0.png")  # mended, the same command goes on
    assert repair("--out", "other", images=("photos/0.png",))[0] == 0


def test_a_dry_run_looks_and_paints_nothing(repair: Callable[..., Said]) -> None:
    code, out, _ = repair("--dry-run", "--model", "sandbox")
    assert code == 0
    assert "objective: plausibility" in out
    assert "photos/a.png: plausibility 0.965, to repaint: 1 (repaired/preview/a.png/strip.png)" in out
    assert "photos/b.png: plausibility 1.000, to repaint: 0" in out
    assert Path("repaired/preview/a.png/strip.png").exists()
    assert not Path("repaired/images").exists() and not Path("repaired/details").exists()
    repair()
    strip = Path("repaired/details/a.png/strip.png").read_bytes()
    repair("--dry-run")
    assert Path("repaired/details/a.png/strip.png").read_bytes() == strip


def test_the_users_mask(repair: Callable[..., Said], place: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[38:50, 30:44] = 255
    Image.fromarray(mask).save("mask.png")
    code, _, err = repair("--mask", "mask.png", "--region.feather", "0", images=("photos/a.png",))
    assert code == 0, err
    changed = (np.asarray(Image.open("photos/a.png")) != np.asarray(Image.open("repaired/images/a.png"))).any(axis=2)
    assert changed.any() and not changed[mask == 0].any()
    Image.fromarray(mask[::2, ::2]).save("small.png")
    code, _, err = repair("--mask", "small.png", "--out", "o2")
    assert code == 1 and "small.png is 32 x 32 and its picture 64 x 64" in err
    assert repair("--mask", "small.png", "--resize_mask", "--out", "o3", images=("photos/a.png",))[0] == 0
    (place / "masks").mkdir()
    code, _, err = repair("--mask", "masks", "--out", "o4")
    assert code == 1 and "There is no mask of a.png: masks must be a file, or a folder with a.png" in err


def test_a_mask_may_be_in_the_alpha_channel_and_limit_the_heat(repair: Callable[..., Said]) -> None:
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:, :40, 3] = 255
    Image.fromarray(alpha).save("mask.png")
    code, _, err = repair("--mask", "mask.png", "--heat_in_mask", images=("photos/a.png",))
    assert code == 0, err
    changed = (np.asarray(Image.open("photos/a.png")) != np.asarray(Image.open("repaired/images/a.png"))).any(axis=2)
    assert changed[40:52, 36:40].all() and not changed[:, 40:].any()


@pytest.mark.parametrize("level", [0, 255])
def test_a_mask_of_nothing_or_everything_is_refused(repair: Callable[..., Said], level: int) -> None:
    Image.new("RGBA", (64, 64), (level, level, level, 255)).save("mask.png")  # opaque: its colour counts
    code, _, err = repair("--mask", "mask.png")
    assert code == 1
    assert f"marks {'everything' if level else 'nothing'}" in err


@pytest.mark.parametrize(
    ("arguments", "prompt", "message"),
    [
        (("--out", "photos"), TEXT, "The output folder photos is that of the pictures"),
        ((), " ", "--prompt is empty"),
        (("--critic", "sandbox-hps", "--objective", "overall"), TEXT, "The critic draws no heatmaps"),
        (("--heatmap", "flaws"), TEXT, "draws implausibility, nothing, and no flaws"),
        (("--strength", "0", "0.5"), TEXT, "each must be in (0, 1]"),
        (("--heat_in_mask",), TEXT, "give --mask, too"),
        (("--prompts", "lines.txt"), TEXT, "--prompt and --prompts came together"),
    ],
)
def test_refused_before_anything_is_loaded_or_written(
    repair: Callable[..., Said], arguments: tuple[str, ...], prompt: str, message: str
) -> None:
    code, _, err = repair(*arguments, prompt=(prompt,))
    assert code == 1 and message in err
    assert not Path("repaired").exists()


def test_prompts_that_do_not_fit_are_refused(repair: Callable[..., Said]) -> None:
    Path("lines.txt").write_text("one\ntwo\nthree\n")
    code, _, err = repair("--prompts", "lines.txt", prompt=())
    assert code == 1 and "lines.txt has 3 lines and there are 2 images" in err
    code, _, err = repair(prompt=())
    assert code == 1 and "photos/a.png and 1 more of 2 images came without a prompt" in err


def test_two_pictures_of_one_name_are_refused(repair: Callable[..., Said]) -> None:
    Image.open("photos/a.png").save("photos/a.bmp")
    code, _, err = repair()
    assert code == 1 and "photos/a.bmp and photos/a.png would both become a.png" in err


def test_a_large_picture_is_repainted_in_crops(repair: Callable[..., Said]) -> None:
    pixels = np.full((768, 1024, 3), 128, np.uint8)
    pixels[300:340, 500:560] = MAGENTA
    Image.fromarray(pixels).save("large.jpg", quality=100, subsampling=0)
    code, _, err = repair(images=("large.jpg",))
    assert code == 0, err
    before, after = (np.asarray(Image.open(path)) for path in ("large.jpg", "repaired/images/large.png"))
    changed = (before != after).any(axis=2)
    assert changed[305:335, 505:555].mean() > 0.99
    changed[270:370, 470:590] = False
    assert not changed.any()


def test_out_may_lie_among_the_pictures(repair: Callable[..., Said], place: Path) -> None:
    rows = [json.dumps({"file_name": name, "text": TEXT}) for name in ("a.png", "b.png", "c.png")]
    (place / "photos/metadata.jsonl").write_text("\n".join(rows))
    assert repair("--out", "photos/repaired", prompt=())[0] == 0
    spoilt(place / "photos/c.png")
    code, out, err = repair("--out", "photos/repaired", prompt=())
    assert code == 0, err
    assert out.count(": repaired") == 2 and out.count("no flaw found") == 1
    code, _, err = repair("--out", ".", images=("photos/repaired",), prompt=(TEXT,))
    assert code == 1 and "There is no image in" in err


def test_nothing_of_others_is_written_over(repair: Callable[..., Said], place: Path) -> None:
    assert repair(images=("photos/a.png",))[0] == 0
    (place / "other").mkdir()
    Image.open("photos/a.png").save("other/a.jpg")
    code, _, err = repair(images=("other/a.jpg",))
    assert code == 1 and "repaired/images/a.png is the repair of photos/a.png" in err
    Path("repaired/images/b.png").write_bytes(b"mine")
    code, _, err = repair()
    assert code == 1 and "repaired/images/b.png was not written by a repair" in err
    (place / "run").mkdir()
    (place / "run/report.html").write_text("mine")
    code, _, err = repair("--out", "run")
    assert code == 1 and "run has report.html, which no repair wrote" in err
    (place / "linked").mkdir()
    (place / "linked/images").symlink_to(place / "photos")
    before = Path("photos/a.png").read_bytes()
    code, _, err = repair("--out", "linked")
    assert code == 1 and Path("photos/a.png").read_bytes() == before


def test_what_was_lost_is_made_again(repair: Callable[..., Said]) -> None:
    repair()
    written = Path("repaired/images/a.png").read_bytes()
    Path("repaired/images/a.png").unlink()
    Path("repaired/details/b.png/strip.png").unlink()
    assert repair()[0] == 0
    assert Path("repaired/images/a.png").read_bytes() == written
    Path("repaired/details/a.png/repair.json").unlink()  # as after a kill between picture and record
    assert repair()[0] == 0
    assert Path("repaired/images/a.png").read_bytes() == written


def test_a_link_to_nothing_is_named_and_the_page_has_all_pictures(repair: Callable[..., Said], place: Path) -> None:
    repair(images=("photos/b.png",))
    (place / "photos/c.png").symlink_to(place / "nothing.png")
    code, _, err = repair()
    assert code == 0 and "photos/c.png is left out: " in err
    repair(images=("photos/a.png",))
    summary = json.loads(Path("repaired/summary.json").read_text())
    assert [row["image"] for row in summary["pictures"]] == ["photos/a.png", "photos/b.png"]


def test_a_mask_of_many_specks_is_refused(repair: Callable[..., Said]) -> None:
    specks = np.zeros((64, 64), np.uint8)
    specks[::4, ::4] = 255
    Image.fromarray(specks).save("mask.png")
    code, _, err = repair("--mask", "mask.png")
    assert code == 1 and "has 256 separate parts" in err


def test_a_run_that_is_killed_goes_on_where_it_was(place: Path) -> None:
    for index in range(6):
        spoilt(place / f"photos/{index}.png", spot=8 + index)
    command = [sys.executable, "-m", "recipes.cli", "repair", "--image", "photos", "--prompt", TEXT, *FEW]
    command += ["--critic", "own_magenta:Magenta", "--sampling.batch_size", "2", "--out"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{place}", "ALIGN_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, "killed"], env=environment, stderr=subprocess.DEVNULL)
    records = lambda: list(Path("killed").glob("details/*/repair.json"))  # noqa: E731
    deadline = time.monotonic() + 240
    while len(records()) < 2 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in records()}
    assert 2 <= len(finished) < 8
    for folder in ("killed", "whole"):
        subprocess.run([*command, folder], env=environment, check=True, stderr=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for path in sorted(Path("whole/images").iterdir()):
        assert (Path("killed/images") / path.name).read_bytes() == path.read_bytes()
    assert len(json.loads(Path("killed/summary.json").read_text())["pictures"]) == 8
