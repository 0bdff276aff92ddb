"""Write the page of ``clasp explore``: one HTML file that fetches nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from io import BytesIO
from string import Template
from typing import TYPE_CHECKING, Any

from clasp_kernels._version import __version__
from clasp_kernels.bundled import bundled_path
from clasp_kernels.explore.encoding import encoded
from clasp_kernels.explore.selections import Exploration

if TYPE_CHECKING:
    from PIL import Image

# A lossless picture may have as many bytes; a larger one is written as JPEG.
_LOSSLESS_BYTES = 150_000
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class PageText:
    """The texts of the page."""

    question: str
    image: str
    """The name of the image."""
    model: str
    category: str
    """The category that is shown first."""
    reason: str
    """Why the category is that one."""
    no_progressive: str = ""
    """Why there is no progressive schedule, if there is none."""


def page(
    exploration: Exploration,
    picture: Image.Image,
    boxes: Sequence[tuple[int, tuple[int, int, int, int]]],
    text: PageText,
) -> str:
    """Return the HTML.

    Args:
        exploration: the selections.
        picture: the image as the model sees it.
        boxes: the tokens that have a place in the picture: number and (left, top, right, bottom).
        text: the texts of the page.
    """
    data = {
        **encoded(exploration),
        "category": text.category,
        "noProgressive": text.no_progressive,
        "width": picture.width,
        "height": picture.height,
        "boxes": [[token, *box] for token, box in boxes],
    }
    style, script = (asset(name).strip() for name in ("page.css", "page.js"))
    return Template(asset("page.html")).substitute(
        policy=_policy(style, script),
        style=style,
        script=script,
        data=json_in_html(data),
        picture=_data_uri(picture),
        width=picture.width,
        height=picture.height,
        question=escape(text.question),
        image=escape(text.image),
        model=escape(text.model),
        category=escape(text.category),
        reason=escape(text.reason),
        version=escape(__version__),
    )


def asset(name: str) -> str:
    """Return the text of one of the files that the page is made from."""
    return bundled_path("explore", name).read_text(encoding="utf-8")


def json_in_html(data: Any) -> str:
    r"""Return JSON that may stand in a script element, whatever strings it holds.

    >>> json_in_html("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy under which nothing is fetched and nothing else runs."""
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def _data_uri(picture: Image.Image) -> str:
    buffer, kind = BytesIO(), "png"
    picture.save(buffer, "PNG", optimize=True)
    if buffer.tell() > _LOSSLESS_BYTES:
        buffer, kind = BytesIO(), "jpeg"
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"
