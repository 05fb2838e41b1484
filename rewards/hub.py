"""The only place of `rewards` that asks the network: folders from the Hugging Face Hub, and files of published sources.

Nothing is asked at import, and `HF_HUB_OFFLINE=1` is obeyed everywhere. What comes is safetensors and JSON, or a file
for `align convert`, which checks what is in it.
"""

import hashlib
import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import urlopen

from rewards.cards import FOLDER_CARD, Source

SECONDS = 60
"""How long a server may be silent."""


class Unreachable(ValueError):
    """Something could not be had, and that says nothing against it: it has gone, or only a person can get it."""


class NoNetwork(ValueError):
    """Something could not be had, and nothing else can be had from there now."""


def hub_folder(repository: str, *, whole: bool) -> Path:
    """A repository of the Hub as a folder of its cache.

    Arguments:
        repository: OWNER/NAME, with a card in `align_reward.json`.
        whole: Whether the weights are wanted, too, or the card alone.

    Raises:
        ValueError: No such repository, or it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.safetensors"] if whole else [FOLDER_CARD]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except HFValidationError as error:
        raise ValueError(f"{repository} cannot be a repository of the Hugging Face Hub: {error}") from error
    except OSError as error:
        raise ValueError(
            f"{repository} is neither a folder here nor a repository in the cache of the Hugging Face Hub, and could "
            f"not be fetched ({_first_line(error)}). Check the name, or the connection and HF_HUB_OFFLINE."
        ) from error


def fetch(source: Source, folder: Path, *, offline: bool = False) -> Path:
    """A published file, from the cache or the network, its digest checked where the card knows it.

    Arguments:
        source: What to fetch.
        folder: For files that are not on the Hub, which has a cache of its own.
        offline: Whether to look into the caches only.

    Raises:
        Unreachable: A program cannot fetch it, or it has gone.
        NoNetwork: It is not in the cache, and there is no network.
        ValueError: It is not the file that the card describes.
    """
    if source.page:
        raise Unreachable(f"get {source.file} from {source.page}")
    if source.repository:
        path = _from_hub(source, offline)
    else:
        path = folder / unquote(source.url.rpartition("/")[2])
        if not path.exists():
            _download(source.url, path, offline)
    if source.sha256 and sha256(path) != source.sha256:
        raise ValueError(f"{path} is not the published {source.file} (its SHA-256 differs). Delete it and run again.")
    return path


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(source: Source, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    revision = source.revision or None
    try:
        return Path(hf_hub_download(source.repository, source.file, revision=revision, local_files_only=offline))
    except (OSError, EntryNotFoundError) as error:
        kind = NoNetwork if isinstance(error, LocalEntryNotFoundError) else Unreachable
        raise kind(f"{source.file} of {source.place} is not in the Hub's cache and could not be fetched") from error


def _download(url: str, path: Path, offline: bool) -> None:
    """Write what a server has to `path`, which appears only when it is whole."""
    if not url.startswith("file:") and (offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE")):
        raise NoNetwork(f"{url} is not in {path.parent} and could not be fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with urlopen(url, timeout=SECONDS) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, HTTPException) as error:
        kind = Unreachable if isinstance(error, HTTPError) else NoNetwork
        raise kind(f"{url} could not be fetched ({_first_line(error)})") from error
    os.replace(partial, path)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
