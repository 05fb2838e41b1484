"""The laws of the house hold on this tree, and each of them can fail: a mutant of every law is caught."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import laws

ROOT = Path(__file__).parents[1]
Law = Callable[[Path], list[str]]

LAWS: list[Law] = [
    laws.directions,
    laws.circles,
    laws.doors,
    laws.pure_files,
    laws.idle_imports,
    laws.quiet_imports,
    laws.light_commands,
    laws.lengths,
    laws.docstrings,
    laws.devices,
    laws.finality,
    laws.warnings_are_errors,
    laws.lock_without_addresses,
]

# Law, file, what the mutant adds to it.
MUTANTS: list[tuple[Law, str, str]] = [
    (laws.directions, "align/select.py", "import rewards"),
    (laws.directions, "align/select.py", "def f():\n    from sandbox.world import draw"),
    (laws.directions, "align/select.py", "def f():\n    return importlib.import_module('recipes.cli')"),
    (laws.directions, "rewards/base.py", "from align.select import best"),
    (laws.directions, "rewards/base.py", "from ..recipes import cli"),
    (laws.directions, "sandbox/gold.py", "import recipes.cli"),
    (laws.directions, "recipes/score.py", "import tests.laws"),
    (laws.directions, "sandbox/world.py", "from sandbox import gold"),
    (laws.circles, "rewards/base.py", "from rewards.hps import HPS"),
    (laws.circles, "rewards/base.py", "def f():\n    from .hps import HPS"),
    (laws.doors, "align/select.py", "from diffusers import StableDiffusionPipeline"),
    (laws.doors, "align/select.py", "import diffusers\ndef f():\n    return diffusers.DiffusionPipeline"),
    (laws.doors, "align/select.py", "from diffusers.pipelines.stable_diffusion import safety_checker"),
    (laws.doors, "align/select.py", "def f():\n    import wandb"),
    (laws.doors, "recipes/score.py", "import wandb"),
    (laws.pure_files, "align/select.py", "import diffusers"),
    (laws.pure_files, "rewards/metrics.py", "def f():\n    import pandas"),
    (laws.pure_files, "align/select.py", "from align.model import TextToImage"),
    (laws.idle_imports, "align/select.py", "print('hello')"),
    (laws.idle_imports, "align/select.py", "import torch\nDEVICE = torch.device('cpu')"),
    (laws.idle_imports, "align/select.py", "from torch import nn\nLAYER = [nn.Linear(1, 1)]"),
    (laws.idle_imports, "align/select.py", "import torch\nif torch.cuda.is_available():\n    N = 1"),
    (laws.idle_imports, "align/select.py", "try:\n    pass\nexcept ValueError:\n    f()"),
    (laws.idle_imports, "align/select.py", "class A:\n    f()"),
    (laws.idle_imports, "align/select.py", "import torch\ndef f(x=torch.zeros(3)):\n    return x"),
    (laws.idle_imports, "align/select.py", "TEXT = Path(__file__).read_text()"),
    (laws.quiet_imports, "align/select.py", "import socket\nsocket.create_connection(('127.0.0.1', 9))"),
    (laws.quiet_imports, "align/select.py", "import a_module_that_nobody_has"),
    (laws.light_commands, "recipes/cli.py", "import torch"),
    (laws.light_commands, "recipes/configuration.py", "import numpy"),
    (laws.light_commands, "recipes/configs/filter_finetune.py", "import transformers"),
    (laws.lengths, "recipes/score.py", "A = 1\n" * 199),
    (laws.lengths, "align/select.py", "A = 1\n" * 399),
    (laws.docstrings, "align/new.py", "A = 1"),
    (laws.docstrings, "tests/test_new.py", "A = 1"),
    (laws.devices, "align/select.py", "from math import *"),
    (laws.devices, "align/select.py", "def f(x):\n    return x.cuda()"),
    (laws.devices, "rewards/base.py", "def f(x):\n    return x.to('cuda')"),
    (laws.devices, "rewards/base.py", "def f(x, i):\n    return x.to(f'cuda:{i}')"),
    (laws.finality, "rewards/hps.py", "class Child(HPS):\n    pass"),
    (laws.finality, "rewards/hps.py", "class Child:\n    def f(self):\n        return super().f()"),
    (laws.warnings_are_errors, "pyproject.toml", "[tool.pytest.ini_options]\nfilterwarnings = ['default']"),
    (laws.warnings_are_errors, "pyproject.toml", "[tool.pytest.ini_options]\nfilterwarnings = ['error', 'ignore']"),
    (laws.lock_without_addresses, "requirements.lock", "torch @ https://example.org/torch.whl"),
    (laws.lock_without_addresses, "requirements.lock", "--extra-index-url somewhere"),
]

LAWFUL = {
    "align/__init__.py": "",
    "align/select.py": '"""Choices."""\nimport re\nWORD = re.compile("a")\n',
    "align/model.py": '"""Models."""\nfrom abc import ABC\nclass TextToImage(ABC):\n    pass\n',
    "align/device.py": '"""Devices."""\nBEST = "cuda"\n',
    "rewards/__init__.py": "",
    "rewards/base.py": '"""Contracts."""\nfrom abc import ABC\nclass Reward(ABC):\n    pass\n',
    "rewards/hps.py": '"""A reward."""\nfrom .base import Reward\nclass HPS(Reward):\n    pass\n',
    "rewards/metrics.py": '"""Statistics."""\nimport math\n',
    "sandbox/__init__.py": "",
    "sandbox/world.py": '"""Scenes."""\n',
    "sandbox/gold.py": '"""The truth as a reward."""\nfrom rewards.base import Reward\n',
    "recipes/score.py": '"""Score."""\nif __name__ == "__main__":\n    print("run")\n',
    "requirements.lock": "torch==2.13.0 --hash=sha256:0\n",
    ".gitignore": "uv.lock\n",
    # Stand-ins, so that a mutant may import them in no time.
    **dict.fromkeys(["numpy.py", "torch.py", "transformers.py"], ""),
}


def identify(value: object) -> str:
    """The name of a law, or of a mutant's file."""
    return getattr(value, "__name__", "") or (str(value) if "/" in str(value) and "\n" not in str(value) else "")


@pytest.fixture
def lawful(tmp_path: Path) -> Path:
    """A tiny tree that breaks no law, with the real command line in it."""
    for name in ("__init__.py", "cli.py", "configuration.py", "errors.py", "settings.py", "configs"):
        source, target = ROOT / "recipes" / name, tmp_path / "recipes" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for name, text in LAWFUL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nfilterwarnings = ['error']\n")
    return tmp_path


@pytest.mark.parametrize("law", LAWS, ids=identify)
def test_law(law: Law) -> None:
    assert law(ROOT) == []


@pytest.mark.parametrize("law", LAWS, ids=identify)
def test_meta_a_lawful_tree_passes(law: Law, lawful: Path) -> None:
    assert law(lawful) == []


@pytest.mark.parametrize(("law", "file", "text"), MUTANTS, ids=identify)
def test_meta_a_mutant_is_caught(law: Law, file: str, text: str, lawful: Path) -> None:
    path = lawful / file
    before = path.read_text() if path.exists() and path.suffix != ".toml" else ""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before}\n{text}\n")
    assert law(lawful) != []


def test_meta_every_law_has_a_mutant() -> None:
    assert {law for law, _, _ in MUTANTS} == set(LAWS)


def test_the_wheel_carries_presets_cards_templates_and_weights(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path.relative_to(ROOT) for package in laws.PACKAGES for path in (ROOT / package).rglob("*.*")]
    ours = {str(path) for path in files if (ROOT / path).is_file() and not re.search(r"__pycache__|/\.", str(path))}
    assert carried == ours
    assert {"rewards/cards.yaml", "align/report/page.html.jinja"} <= carried
