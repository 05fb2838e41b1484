"""The sandbox's RAHF is built of what people said: resumable, and read back as it was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rewards.load import load_reward
from rewards.rahf.critic import Rahf
from rewards.rahf.network import SCORES
from sandbox.build import rahf
from sandbox.build.pictures import draw_pictures
from sandbox.build.rich import Rich, annotate, join
from sandbox.build.tokenizer import words


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Rich:
    """What people said of twelve pictures, half of them flawed, in two files."""
    pictures = draw_pictures(12, "train", 0.5, seed=3)
    pixels = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).contiguous()
    place = tmp_path_factory.mktemp("people")
    return join(
        [
            annotate(place / "a.safetensors", pixels[:6], pictures.captions[:6], seed=1),
            annotate(place / "b.safetensors", pixels[6:], pictures.captions[6:], seed=2),
        ]
    )


def test_every_word_is_one_token_and_marks_are_written_and_read() -> None:
    tokenizer = rahf.build_tokenizer()
    assert tokenizer.get_vocab_size() <= rahf.CONFIG.vocabulary
    text = "two large red_0 circles_0 on a white background"
    encoded = tokenizer.encode(text)
    assert "<unk>" not in encoded.tokens
    assert encoded.tokens[2:6] == ["▁red", "_0", "▁circles", "_0"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == text
    assert all(len(tokenizer.encode(word).ids) == 2 for word in words())


@pytest.mark.parametrize("form", rahf.FORMS)
def test_a_network_learns_in_two_stages_and_is_read_back(
    rich: Rich, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(rahf, "BATCH", 4)
    monkeypatch.setattr(rahf, "MAPPED", 2)
    monkeypatch.setattr(rahf, "MAP_STEPS", 2)
    monkeypatch.setattr(rahf, "draw_pictures", lambda count, *given, **options: draw_pictures(8, *given, **options))
    accelerator = Accelerator(cpu=True)
    first = rahf.pretrain(tmp_path / "captions", 2, accelerator)
    people = rahf.Feedback(rich, rich, dev=rich)
    network = rahf.build(tmp_path / "feedback", first, people, form, 3, accelerator)
    again = rahf.build(tmp_path / "feedback", first, people, form, 3, accelerator)
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    rahf.save_reward(network, tmp_path / "saved")
    critic = load_reward(str(tmp_path / "saved"), torch.device("cpu"))
    images = rich.pixels[:2].float() / 255
    expected = Rahf.of(network.eval(), rahf.build_tokenizer())(images, rich.captions[:2])
    torch.testing.assert_close(critic(images, rich.captions[:2]), expected, atol=2e-2, rtol=0)
    found = rahf.quality(network, rich)
    assert list(found) == [f"PLCC {name}" for name in SCORES]
    scores = critic(rich.pixels.float() / 255, rich.captions)[:, 0]
    by_hand = np.corrcoef(scores.numpy(), rich.scores[:, 0].numpy())[0, 1]
    assert abs(found["PLCC plausibility"] - by_hand) < 0.02
