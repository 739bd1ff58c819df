"""A bundle behind the interface that every client speaks: OpenAI's HTTP, text and pictures, one scheduler a device.

    import edgemm.serve
    application = edgemm.serve.app("sticker.bundle")     # any ASGI server runs it; it mounts into another application

`edgemm serve` runs it with uvicorn (cli/serve.py).  Importing this brings neither starlette nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgemm.serve.application import Application
    from edgemm.serve.options import ServeKeywords
    from edgemm.serve.registry import Served

__all__ = ["app"]


def app(bundle: Served, *bundles: Served, **options: Unpack[ServeKeywords]) -> Application:
    """An ASGI application that answers for one bundle or several: paths, or models that edgemm.load opened.

    `options` are the fields of ServeOptions (edgemm/serve/options.py).  Models that it opened itself close with it.
    """
    from edgemm.options import from_keywords
    from edgemm.serve.application import Application
    from edgemm.serve.options import ServeOptions

    return Application((bundle, *bundles), from_keywords(ServeOptions, "serve.app()", options))
