"""Optimization profiles: for every phase of a component the least, usual and largest shape of each input.

Shapes come from the manifest alone.  One profile a phase: a transformer reads a prompt, then one token at a time; the
denoiser runs one row, or two with guidance.
Axes: b batch, s new tokens, m image tokens, T cache slots, t prefix slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.components import TensorSpec
from edgemm.errors import BundleError
from edgemm.manifest import Manifest
from edgemm.runtimes.image_tokens_loop import SIDE_BY_SIDE

__all__ = ["Profile", "merged", "profiles_of", "smaller"]

Range = tuple[int, int, int]  # least, usual, largest
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
USUAL_PROMPT = 128


@dataclass(frozen=True)
class Profile:
    phase: str  # prefill, decode, denoise, ...
    shapes: dict[str, Shapes]  # input -> least, usual and largest shape


def profiles_of(manifest: Manifest, component: str, target: str) -> tuple[Profile, ...]:
    context = manifest.limits.max_context
    seen = min(manifest.loops.text.image_token_count if manifest.loops.text else 1, context)
    one: Range = (1, 1, 1)
    slots: Range = (1, context, context)
    pictures = 2 * SIDE_BY_SIDE  # each beside its unconditional row
    rows: Range = (1, 2, pictures) if manifest.loops.image_tokens else one
    phases: dict[str, dict[str, dict[str, Range]]] = {
        "transformer": {
            "prefill": {"b": rows, "s": (1, min(USUAL_PROMPT, context), context), "m": (1, seen, context), "T": slots},
            "decode": {"b": rows, "s": one, "m": one, "T": slots},
        },
        "conditioner": {"condition": {"b": one, "T": slots, "t": slots}},
        "denoiser": {"denoise": {"b": (1, 2, 2), "t": slots}},
        "image_encoder": {"encode": {"b": one}},
        "image_decoder": {"decode": {"b": one}},
        "text_head": {"say": {"b": rows}},
        "image_head": {"say": {"b": rows}},
        "image_embedder": {"embed": {"b": rows, "s": one}},
        "vq_encoder": {"encode": {"b": one}},
        "vq_decoder": {"decode": {"b": one}},
    }
    inputs = manifest.variant(component, target).inputs
    return tuple(_profile(phase, axes, inputs) for phase, axes in phases[component].items())


def _profile(phase: str, axes: dict[str, Range], inputs: tuple[TensorSpec, ...]) -> Profile:
    def size(spec: TensorSpec, entry: int | str, which: int) -> int:
        if isinstance(entry, int):
            return entry
        if entry not in axes:
            raise BundleError(f"axis {entry!r} of {spec.name!r} has no size in phase {phase}")
        return axes[entry][which]

    def shape(spec: TensorSpec, which: int) -> tuple[int, ...]:
        return tuple(size(spec, entry, which) for entry in spec.shape)

    return Profile(phase, {spec.name: (shape(spec, 0), shape(spec, 1), shape(spec, 2)) for spec in inputs})


def merged(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """One profile for all phases, tuned for the last: TensorRT for RTX stores the weights once a profile."""
    first, last = profiles[0], profiles[-1]
    if len(profiles) == 1:
        return profiles

    def over_all(name: str) -> Shapes:
        ranges = [profile.shapes[name] for profile in profiles]
        least = tuple(map(min, *(shapes[0] for shapes in ranges)))
        most = tuple(map(max, *(shapes[2] for shapes in ranges)))
        return least, last.shapes[name][1], most

    phase = "+".join(profile.phase for profile in profiles)
    return (Profile(phase, {name: over_all(name) for name in first.shapes}),)


def smaller(profile: Profile) -> Profile:
    """The same with a quarter of the room between the least and the largest size of every axis."""

    def shrink(shapes: Shapes) -> Shapes:
        least, usual, largest = shapes
        most = tuple(low + (high - low) // 4 for low, high in zip(least, largest))
        return least, tuple(map(min, usual, most)), most

    return Profile(profile.phase, {name: shrink(shapes) for name, shapes in profile.shapes.items()})
