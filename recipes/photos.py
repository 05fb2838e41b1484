"""Pictures that nobody rated: photos with captions, which come first, and negatives among the rated ones."""

from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from recipes.errors import error_text
from recipes.image_sources import Found, read_folder
from rewards.image_file import read_image
from rewards.training.feedback import Photo


def read_captioned(folder: Path | None) -> list[Photo]:
    """The pictures of a folder with the captions that stand beside them; none of None.

    Raises:
        ValueError: A folder without pictures, or one of its pictures without a caption, of which nothing is learned.
    """
    found = _pictures(folder)
    bare = [one.name for one in found if not (one.text or "").strip()]
    if bare:
        raise ValueError(
            f"{len(bare):,} of {len(found):,} pictures in {folder} have no caption, such as {bare[0]}; each needs one. "
            'Write a metadata.jsonl beside them, with a line such as {"file_name": "a.png", "text": "a cat"} for each.'
        )
    return [_photo(one) for one in found]


def read_photos(folder: Path | None) -> list[Photo]:
    """The pictures of a folder, with the captions of those that have one; none of None.

    Raises:
        ValueError: A folder without pictures.
    """
    return [_photo(one) for one in _pictures(folder)]


def _pictures(folder: Path | None) -> list[Found]:
    if folder is None:
        return []
    found = list(read_folder(folder))
    if not found:
        raise ValueError(f"{folder} holds no pictures. Give a folder with some, or leave it out.")
    return found


def _photo(found: Found) -> Photo:
    return Photo(partial(_decode, found), found.text or "")


def _decode(found: Found) -> Float[Tensor, "3 h w"]:
    try:
        return read_image(found.read())
    except (ValueError, OSError) as error:
        raise ValueError(f"{found.name}: the picture cannot be decoded. {error_text(error)}") from error
