"""What holds in every test: no network, no account, and accelerator tests only where there is an accelerator."""

import os

import pytest


def pytest_configure() -> None:
    """Set before any library reads it: the Hub is out of reach and W&B does not call home."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")


@pytest.fixture(autouse=True, scope="session")
def _threads_of_a_recipe() -> None:
    """Recipes set the threads, which decide the last bits; so they are the same before the first one has run."""
    from align.device import set_threads

    set_threads()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` on a machine without an accelerator."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
