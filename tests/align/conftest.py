"""What the tests of align share: a tiny Stable Diffusion folder, made once a session, and a log."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from align.families.load import load_model
from align.log import Log
from align.model import TextToImage
from tests.tiny import save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that predicts noise; not to be written to."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "epsilon")


@pytest.fixture(scope="session")
def tiny_v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that predicts v; not to be written to."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "v", "v_prediction", seed=1)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> TextToImage:
    """The tiny model that predicts noise; not to be changed."""
    return load_model(tiny_folder, torch.device("cpu"))


@pytest.fixture
def fresh_model(tiny_folder: Path) -> TextToImage:
    """The same model, loaded for one test that changes it."""
    return load_model(tiny_folder, torch.device("cpu"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log in a folder of its own."""
    with Log(tmp_path / "log") as opened:
        yield opened
