"""The folder of a run: what was asked for, where it ran, and that only one run works on it at a time."""

import difflib
import fcntl
import platform
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from align.state import atomic_path, write_json
from recipes.settings import Settings, as_yaml

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch", "datasets", "safetensors")


@contextmanager
def run_folder(
    folder: Path, config: Settings, device: str, threads: int, accelerator: Accelerator
) -> Generator[Path, None, None]:
    """Hold the folder of a run, with `config.yaml` and `environment.json` in it; the main process holds it for all.

    Raises:
        ValueError: Another run holds it, or it belongs to a run with other settings (the difference is shown).
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"Another process works on {folder}. Wait for it, or choose another output_dir."
            ) from error
        _claim(folder / "config.yaml", as_yaml(config))
        write_json(folder / "environment.json", environment(device, threads, accelerator.num_processes))
        accelerator.wait_for_everyone()
        yield folder


def environment(device: str, threads: int, processes: int) -> dict[str, object]:
    """Versions, code and machine: what "bit-identical" depends on."""
    versions = {name: version(name) for name in PACKAGES}
    place = {"device": device, "threads": threads, "processes": processes, "machine": platform.platform()}
    return {"python": platform.python_version(), "git_commit": _commit(), **place, "versions": versions}


def _claim(path: Path, settings: str) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else settings
    if before != settings:
        lines = difflib.unified_diff(before.splitlines(), settings.splitlines(), "the run's", "now", lineterm="", n=0)
        changes = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
        raise ValueError(
            f"{path.parent} holds a run with other settings:\n" + "\n".join(f"  {line}" for line in changes) + "\n"
            "Go back to them (-) to continue that run, or choose another output_dir for the new ones (+)."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(settings, encoding="utf-8")


def _commit() -> str | None:
    """The commit of the code, where it is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
