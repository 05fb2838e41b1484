"""`align doctor`: fetch published rewards, convert them, and check that they score pictures as published.

This is what somebody with a network runs: the numbers of the tests are those of weights made by a rule. Each reward
passes, fails, or is skipped because something could not be had. Where no published score of a picture is known, the
score must be near the published range, and higher for the picture's own prompt than for another's. Weights that are
converted already are used as they are; what is fetched is kept, and a second run fetches nothing.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App

from recipes.reward_table import size_text
from rewards.cards import Card, Check, Source, home, load_cards
from rewards.hub import NoNetwork, Unreachable, fetch

NO_SCORE = "no published score is known; this checks only that the scores make sense"
SECOND_LINE = "\n" + " " * 23


@dataclass(frozen=True)
class Finding:
    """What came out for one reward: PASS, FAIL or SKIPPED, and in words why."""

    verdict: str
    reasons: tuple[str, ...]
    network: bool = True


def doctor_app() -> App:
    """The command `align doctor`."""
    app = App(
        name="align doctor",
        help="Fetch published rewards, convert them, and check their scores of pictures.",
        help_format="plaintext",
        version_flags=(),
    )
    app.default(doctor)
    return app


def doctor(*names: str, device: str = "auto", dry_run: bool = False) -> None:
    """Fetch published rewards, convert them, and check their scores of pictures.

    Arguments:
        names: Short names of rewards; all published ones if left out.
        device: Where to compute: a torch device, or `auto` for the best there is.
        dry_run: Print what would be fetched and checked, and stop.

    Raises:
        ValueError: An unknown name, a reward that failed, or nothing that could be checked.
    """
    cards = _choose(names)
    for card in cards:
        print(f"{card.name}: {_plan(card)}; {card.paper}; weights: {card.licence}")
    if dry_run:
        return
    findings: list[Finding] = []
    for card in cards:
        findings.append(examine(card, device, offline=not all(finding.network for finding in findings)))
        print(f"{card.name:<12}  {findings[-1].verdict:<7}  {SECOND_LINE.join(findings[-1].reasons)}", flush=True)
    _conclude(cards, findings)


def examine(card: Card, device: str, *, offline: bool = False) -> Finding:
    """Get a reward and its pictures, and check it. `offline`: a fetch has shown that there is no network."""
    try:
        if not card.path.exists():
            _obtain(card, offline)
        pictures = [_picture(check, offline) for check in card.check]
        from recipes.doctor_check import check_scores  # torch comes only where there is something to check

        results = check_scores(card, pictures, device)
    except (Unreachable, NoNetwork) as error:
        return Finding("SKIPPED", (f"{error}.",), network=not isinstance(error, NoNetwork))
    except (ValueError, OSError) as error:
        return Finding("FAIL", (str(error),))
    kind = "published scores" if any(check.score is not None for check in card.check) else NO_SCORE
    verdict = "PASS" if all(good for good, _ in results) else "FAIL"
    return Finding(verdict, (kind, *(text for _, text in results)))


def _choose(names: Sequence[str]) -> list[Card]:
    published = {name: card for name, card in load_cards().items() if card.check}
    if unknown := [name for name in names if name not in published]:
        raise ValueError(f"{unknown[0]} is not a published reward. They are: {', '.join(published)}.")
    return [published[name] for name in names or published]


def _plan(card: Card) -> str:
    """What has to be fetched."""
    if card.path.exists():
        return f"in {card.path}"
    return "fetches " + ", ".join(f"{one.file} ({size_text(one) or 'size unknown'})" for one in card.sources.values())


def _obtain(card: Card, offline: bool) -> None:
    """Fetch the published files and convert them, in a process of its own, into the folder where the card looks."""
    by_hand = f"`align rewards show {card.name}` says how to convert it then"
    if asked := [source for source in card.sources.values() if source.page]:
        raise Unreachable(f"get {asked[0].file} from {asked[0].page}; {by_hand}")
    files = {role: str(fetch(source, home() / "downloads", offline=offline)) for role, source in card.sources.items()}
    options = [word for role, file in files.items() if role != "checkpoint" for word in (f"--{role}", file)]
    command = [files["checkpoint"], "--as", card.name, "--out", str(card.path), *options]
    program = [sys.executable, "-m", "recipes.cli", "convert"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([*program, *command], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"converting {files['checkpoint']}: {done.stderr.strip().removeprefix('error: ')}")


def _picture(check: Check, offline: bool) -> Path:
    return fetch(Source(check.file, url=check.image, sha256=check.sha256), home() / "downloads", offline=offline)


def _conclude(cards: Sequence[Card], findings: Sequence[Finding]) -> None:
    """The sum of it all; what is not good is an error, so that a script can tell."""
    verdicts = [finding.verdict for finding in findings]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("PASS", "FAIL", "SKIPPED")))
    failed = [card.name for card, verdict in zip(cards, verdicts, strict=True) if verdict == "FAIL"]
    if failed:
        raise ValueError(f"{', '.join(failed)} failed. Please report the lines above.")
    if "PASS" not in verdicts:
        raise ValueError("Nothing could be checked; the lines above say what is missing.")
