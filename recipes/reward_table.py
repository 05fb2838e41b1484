"""`align rewards ls` and `align rewards show`: the rewards that have a short name, and all that is known about one."""

import shlex
from collections.abc import Iterator

from cyclopts import App

from rewards.cards import Card, Source, load_cards
from rewards.names import find_cards


def rewards_app() -> App:
    """The sub-command `align rewards`."""
    app = App(
        name="align rewards",
        help="The rewards that have a short name. A class of your own needs none: --rewards my_file:MyReward.",
        help_format="plaintext",
        version_flags=(),
    )
    app.command(list_rewards, name="ls")
    app.command(show_reward, name="show")
    return app


def list_rewards() -> None:
    """List the rewards: dimensions, whether the weights are here, commercial use, range, licence."""
    head = ("name", "dimensions", "weights", "commercial", "range", "licence of the weights")
    rows = [head, *map(_row, load_cards().values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def show_reward(name: str, /) -> None:
    """Show all that is known about a reward, and how to get its weights.

    Arguments:
        name: A short name of `align rewards ls`, a folder with weights, or OWNER/NAME of the Hugging Face Hub.

    Raises:
        ValueError: An unknown name, or a class of the user's own, which has no card.
    """
    cards = find_cards(name)
    if not cards:
        raise ValueError(f"{name} is a class of your own and has no card. Names with one: {', '.join(load_cards())}.")
    for found, card in cards:
        for key, value in _facts(found, card):
            print(f"{key + ':':<12} {value}")
        if card.source and not card.path.exists():
            print(f"\n{how_to_get(card)}")


def how_to_get(card: Card) -> str:
    """The commands that bring the weights of a published reward to where they are looked for."""
    asked = [source for source in card.sources.values() if source.page]
    fetched = [_download(source) for source in card.sources.values() if not source.page]
    by_hand = [f"# get {source.file} from {source.page}" for source in asked]
    lines = [*by_hand, *fetched, _convert(card)]
    whole = "" if asked else f"\nOr all at once, and checked: align doctor {card.name}"
    return "To get the weights:\n" + "\n".join(f"  {line}" for line in lines) + whole


def range_text(card: Card) -> str:
    """The published range of the scores; empty where none is known."""
    return f"{card.range[0]:g} to {card.range[1]:g}" if card.range else ""


def size_text(source: Source) -> str:
    """The size of a published file; empty where it is not known."""
    if not source.size:
        return ""
    return f"{source.size / 1e9:.2f} GB" if source.size >= 1e8 else f"{source.size / 1e6:.1f} MB"


def _row(card: Card) -> tuple[str, ...]:
    here = "here" if card.path.exists() else "to get"
    return card.name, ",".join(card.dimensions), here, card.commercial, range_text(card), card.licence


def _facts(name: str, card: Card) -> Iterator[tuple[str, str]]:
    """What is known, by its name; what is not known is left out."""
    facts = {
        "name": name,
        "class": card.reward,
        "arguments": ", ".join(f"{key}={value}" for key, value in card.args.items()),
        "dimensions": ", ".join(card.dimensions),
        "range": range_text(card),
        "scale": card.scale,
        "parameters": card.parameters,
        "accuracy": card.accuracy,
        "paper": card.paper,
        "licence": card.licence,
        "commercial": card.commercial,
        "weights": f"{card.path} ({'here' if card.path.exists() else 'not here yet'})",
    }
    yield from ((key, value) for key, value in facts.items() if value)
    for role, source in card.sources.items():
        yield role, _described(source)


def _described(source: Source) -> str:
    revision = f" at {source.revision}" if source.revision else ""
    size = f", {size_text(source)}" if source.size else ""
    digest = f", SHA-256 {source.sha256}" if source.sha256 else ""
    return f"{source.file} of {source.place}{revision}{size}{digest}"


def _download(source: Source) -> str:
    if source.url:
        return f"curl -L -o {shlex.quote(source.file)} {shlex.quote(source.url)}"
    revision = f" --revision {source.revision}" if source.revision else ""
    folder = source.repository.rpartition("/")[2]
    return f"hf download {source.repository} {source.file}{revision} --local-dir {folder}"


def _convert(card: Card) -> str:
    """The command that converts the files which `_download` and a person have put into the current folder."""
    files = {role: _local(source) for role, source in card.sources.items()}
    options = [f" --{role} {shlex.quote(file)}" for role, file in files.items() if role != "checkpoint"]
    options += [" --allow-pickle" for source in card.sources.values() if source.pickled]
    target = shlex.quote(str(card.path))
    return f"align convert {shlex.quote(files['checkpoint'])} --as {card.name} --out {target}{''.join(options)}"


def _local(source: Source) -> str:
    return f"{source.repository.rpartition('/')[2]}/{source.file}" if source.repository else source.file
