"""Fetching published files: from the Hub's cache, from an address; what is missing or wrong; never without consent."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from rewards.cards import Source
from rewards.hub import NoNetwork, Unreachable, fetch, sha256
from tests.rewards.folders import COMMIT, save_in_hub_cache


def file_source(tmp_path: Path, text: str = "weights", digest: str = "") -> Source:
    """A file that is published at an address of this machine."""
    (tmp_path / "published").mkdir(exist_ok=True)
    path = tmp_path / "published/a b.pt"
    path.write_text(text)
    return Source("a b.pt", url=path.as_uri(), sha256=digest)


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    found = fetch(file_source(tmp_path), tmp_path / "downloads")
    assert found == tmp_path / "downloads/a b.pt"
    assert found.read_text() == "weights"
    again = file_source(tmp_path, text="changed since")
    assert fetch(again, tmp_path / "downloads").read_text() == "weights"
    assert list((tmp_path / "downloads").iterdir()) == [found], "nothing is left over"


def test_the_digest_is_checked_where_it_is_known(tmp_path: Path) -> None:
    source = file_source(tmp_path)
    digest = sha256(tmp_path / "published/a b.pt")
    assert fetch(file_source(tmp_path, digest=digest), tmp_path / "good").exists()
    with pytest.raises(ValueError, match=r"is not the published a b.pt \(its SHA-256 differs\). Delete it") as caught:
        fetch(Source(source.file, url=source.url, sha256="0" * 64), tmp_path / "bad")
    assert not isinstance(caught.value, Unreachable)


def test_what_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(NoNetwork, match="gone.pt could not be fetched"):
        fetch(Source("gone.pt", url=(tmp_path / "gone.pt").as_uri()), tmp_path)
    with pytest.raises(NoNetwork, match=r"https://example.org/a.pt is not in .* and could not be fetched"):
        fetch(Source("a.pt", url="https://example.org/a.pt"), tmp_path)  # HF_HUB_OFFLINE is set in tests
    with pytest.raises(Unreachable, match="get a.pt from https://example.org/#files") as caught:
        fetch(Source("a.pt", page="https://example.org/#files"), tmp_path)
    assert not isinstance(caught.value, NoNetwork)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_hub_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = save_in_hub_cache(tmp_path / "hub", "somebody/hps")
    source = Source("open_clip_config.json", repository="somebody/hps", revision=COMMIT)
    assert fetch(source, tmp_path) == fetch(source, tmp_path, offline=True) == folder / "open_clip_config.json"
    for missing in ("other.pt", "open_clip_config.json"):
        gone = Source(missing, repository="somebody/hps", revision=COMMIT[::-1])
        with pytest.raises(NoNetwork, match=f"{missing} of huggingface.co/somebody/hps is not in the Hub's cache"):
            fetch(gone, tmp_path)
