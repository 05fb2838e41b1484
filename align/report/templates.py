"""The templates of pages and cards, and how they write numbers and pictures."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image
from torch import Tensor

from align.evaluate import Row

PIXEL_ART_SIDE = 128  # images whose shorter side is no longer are kept lossless and drawn with hard pixels
PHOTO_SIDE = 512  # larger ones are shrunk to this
SMALL_PHOTO_SIDE = 256  # and to this where many are shown


def html_template(name: str) -> Template:
    """A page of this folder, with everything that a user wrote escaped."""
    pictures = {f.__name__: f for f in (verdict, data_uri, small_data_uri)}
    return environment(Path(__file__).parent, pictures, autoescape=True).get_template(name)


def environment(folder: Path, filters: Mapping[str, Callable[..., Any]], *, autoescape: bool) -> Environment:
    """Where the templates of a folder are read: an unknown name is an error, and `filters` join those for numbers."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(filters, number=number, signed=signed, percent=percent)
    return made


def verdict(row: Row) -> str:
    """'up', 'down', or 'unclear' where the interval holds zero."""
    return "up" if row.ci_low > 0 else "down" if row.ci_high < 0 else "unclear"


def number(value: float) -> str:
    """Three decimals, fewer for large numbers and two digits of tiny ones, with a true minus sign."""
    size = abs(value)
    text = f"{value:.2g}" if 0 < size < 5e-4 else f"{value:.3f}" if size < 100 else f"{value:,.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """`number` with its sign, also where it is a plus."""
    return number(value) if value < 0 else f"+{number(value)}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")


def small_data_uri(image: Float[Tensor, "3 h w"]) -> str:
    """The image inside a URI, where many are shown."""
    return data_uri(image, SMALL_PHOTO_SIDE)


def data_uri(image: Float[Tensor, "3 h w"], photo_side: int = PHOTO_SIDE) -> str:
    """The image inside a URI: small ones as PNG, pixel by pixel, large ones as WebP of at most `photo_side` pixels."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    small = min(picture.size) <= PIXEL_ART_SIDE
    picture.thumbnail((photo_side, photo_side))
    buffer = io.BytesIO()
    kind = "png" if small else "webp"
    picture.save(buffer, format=kind, quality=88)  # PNG is lossless and ignores the quality
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
