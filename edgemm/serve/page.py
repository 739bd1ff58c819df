"""The page at /: hand-written HTML, CSS and modules from the package, under a policy that lets nothing else in.

It speaks to /v1 and /readyz as any other client does; without a key it is served, and asks for one.
"""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PATHS", "routes"]

FOLDER = Path(__file__).parent / "web"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {f"/web/{path.name}": path for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}
FILES["/"] = FILES.pop("/web/index.html")
PATHS = tuple(FILES)
POLICY = "; ".join(  # https://www.w3.org/TR/CSP3/
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "vary": "accept-encoding",
    "cache-control": "no-cache",  # a newer edgemm on the same port shows its own page
}


def routes() -> list[Route]:
    """One a file."""
    return [Route(path, _sender(file), methods=["GET"]) for path, file in FILES.items()]


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, kind = file.read_bytes(), KINDS[file.suffix]
    small = gzip.compress(content, mtime=0)

    async def send(request: Request) -> Response:
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(small, media_type=kind, headers=HEADERS | {"content-encoding": "gzip"})
        return Response(content, media_type=kind, headers=HEADERS)

    return send
