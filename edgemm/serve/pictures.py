"""Pictures and videos on the wire: data: URLs in, PNG, JPEG or WebP out.

Nothing is fetched and no file is opened: a URL that is no data: URL is refused, whatever it names.
"""

from __future__ import annotations

import base64
import io
import urllib.parse
from typing import TYPE_CHECKING

from edgemm.serve.problems import Problem

if TYPE_CHECKING:
    from edgemm import Picture

__all__ = ["as_base64", "as_url", "of_base64", "of_url"]


def of_url(url: str, param: str, kind: str = "image") -> bytes:
    """The bytes of a data: URL (RFC 2397); `kind` is "image" or "video", as errors call it."""
    if url[:5].lower() != "data:":
        message = f"{param} is {url[:40]!r}: nothing is fetched; send a data: URL"
        raise Problem(400, f"remote_{kind}_refused", message, param)
    comma = url.find(",")
    if comma < 0:
        raise Problem(400, f"invalid_{kind}", f"{param} is a data: URL without a comma", param)
    raw = urllib.parse.unquote_to_bytes(url[comma + 1 :])
    return of_base64(raw, param, kind) if url[:comma].lower().endswith(";base64") else _some(raw, param, kind)


def of_base64(content: str | bytes, param: str, kind: str = "image") -> bytes:
    raw = content.encode("ascii", "replace") if isinstance(content, str) else content
    if any(blank in raw for blank in b" \t\r\n\v\f"):
        raw = b"".join(raw.split())
    try:
        return _some(base64.b64decode(raw, validate=True), param, kind)
    except ValueError as error:
        raise Problem(400, f"invalid_{kind}", f"{param} is not base64: {error}", param) from None


def _some(raw: bytes, param: str, kind: str) -> bytes:
    if not raw:
        raise Problem(400, f"invalid_{kind}", f"{param} is empty", param)
    return raw


def as_base64(picture: Picture, kind: str = "png", quality: int | None = None) -> str:
    """A picture as a file of this kind, moving where it moves; `quality` is 0 to 100, of JPEG and WebP."""
    if picture.clip is not None:
        return base64.b64encode(picture.clip.encoded(f".{kind}", quality)).decode("ascii")
    how = {} if quality is None or kind == "png" else {"quality": quality}
    file = io.BytesIO()
    picture.to_pil().save(file, format=kind.upper(), **how)
    return base64.b64encode(file.getvalue()).decode("ascii")


def as_url(picture: Picture, kind: str = "png", quality: int | None = None) -> str:
    return f"data:image/{kind};base64,{as_base64(picture, kind, quality)}"
