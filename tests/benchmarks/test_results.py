"""One command writes the tables of docs/results.md anew, and nothing else on the page."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import results
from recipes import sandbox_feedback
from recipes.configs.evaluate_reward import EvaluateRewardConfig
from rewards.load import load_reward
from tests.recipes.feedback_files import save_start

PAGE = "# Before\n\n<!-- rahf: begin -->\nold\n<!-- rahf: end -->\n\nAfter.\n"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_section_is_written_anew_with_every_form_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox_feedback, "SIZES", {"test": ("test", 3, 2, 19)})
    monkeypatch.setattr(results, "EvaluateRewardConfig", partial(EvaluateRewardConfig, resamples=100))
    save_start(tmp_path / "built/multi-head/reward")
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    for _ in range(2):
        results.main(["clip-gradient", "sandbox-hps"], page, tmp_path / "built")
    written = page.read_text()
    assert written.startswith("# Before\n\n<!-- rahf: begin -->\n6 images of 3 prompts;")
    assert written.endswith("|\n<!-- rahf: end -->\n\nAfter.\n") and "old" not in written
    assert re.search(r"at commit [0-9a-f]{7,12}(-dirty)? on cpu, torch \d", written)
    for name in ("clip-gradient", "sandbox-hps", "RAHF, multi-head", "one person", "ceiling"):
        assert len(re.findall(rf"^\| {name} +\|", written, re.M)) >= 1, name
    assert written.count((tmp_path / "runs/results/rahf/table.md").read_text().strip()) == 1


def test_the_form_that_comes_first_has_no_second_row(tmp_path: Path) -> None:
    for form in results.FORMS:
        save_start(tmp_path / form / "reward")
    first = load_reward(str(tmp_path / "multi-head/reward"), torch.device("cpu"))
    assert [*results.other_forms(first, tmp_path)] == ["RAHF, augmented-prompt"]
    assert results.form_of("it", first) == ["it has the form multi-head."]


@pytest.mark.parametrize("text", ["", "<!-- rahf: begin -->", "<!-- rahf: end --><!-- rahf: begin -->", PAGE + PAGE])
def test_a_page_without_its_markers_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have one line <!-- rahf: begin -->"):
        results.replace_section(page, "rahf", "new")
    assert page.read_text() == text


def test_the_page_of_the_project_has_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(results.PAGE.read_text())
    results.replace_section(page, "rahf", "new")
    assert "<!-- rahf: begin -->\nnew\n<!-- rahf: end -->" in page.read_text()
