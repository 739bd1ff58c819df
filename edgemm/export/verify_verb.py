"""The parity half of `edgemm verify`: run the bundle's loops here and compare with what torch answered at export.

Needs no torch: the answers are in the bundle.  Hashes and graph rules come first, in runtimes/verify_verb.py.
"""

from __future__ import annotations

from edgemm.bundle import Bundle
from edgemm.errors import CheckFailedError
from edgemm.export import recorded

__all__ = ["check_bundle"]


def check_bundle(bundle: Bundle) -> list[str]:
    """One line a comparison. Raises CheckFailedError when this machine's answers differ from the recorded ones."""
    from edgemm.export.parity import compare_pictures, compare_tokens
    from edgemm.runtimes.backends import select
    from edgemm.runtimes.model import Model
    from edgemm.runtimes.threads import plan_threads

    count, texts, draws, document = recorded.recorded_cases(bundle)
    precision = document["precision"]
    with Model(bundle, select("auto", bundle.manifest.targets), plan_threads()) as model:
        comparisons = [
            compare_tokens(f"text loop, {c.prompt!r}", precision, recorded.reply_tokens(model, c, count), c.tokens)
            for c in texts
        ]
        comparisons += [
            compare_pictures(f"denoise loop, {c.prompt!r}", precision, recorded.draw_pixels(model, c), pixels)
            for c, pixels in draws
        ]
    failed = [c for c in comparisons if not c.passed]
    if failed:
        raise CheckFailedError(f"{bundle.path}: {failed[0].line()[5:]}; {len(failed)} of {len(comparisons)} differ")
    return [c.line() for c in comparisons]
