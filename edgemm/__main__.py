"""`python -m edgemm VERB` is `edgemm VERB`; this is where both begin.

Ctrl-C ends with 130 from the first moment on: also while the command line itself is imported.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    try:
        from edgemm.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before the command line could hear it
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
