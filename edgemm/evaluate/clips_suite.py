"""Does a drawn clip show what its caption claims?  Exact, without a model: objects a frame, linked over the frames.

The objects of a frame are shapes_checker.find_objects'.  A way is the slope of the middles over the frames (least
squares); what strays off its axis by more than OFF_AXIS of it has none.  A speed is named only where it is nearer to
one of the two than DEAD_ZONE.  Events are where the colour, or whether the shape is there, changes, once and for good.
Axes: f frames, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemm.data.clips import DIRECTIONS
from edgemm.evaluate.shapes_checker import CheckResult, Found, find_objects

__all__ = ["check_clip"]

OFF_AXIS = 0.35
STILL = 0.4  # of 1/32 of the side a frame: less is no motion
DEAD_ZONE = (1.3, 1.7)  # of 1/32 of the side a frame: slower is slowly, faster is quickly


def check_clip(frames: np.ndarray, scene: dict[str, Any]) -> CheckResult:
    """Judge frames uint8 (f, S, S, 3) against a scene that data/clips.py made to be drawn."""
    found = [find_objects(frame) for frame in frames]
    seen = tuple(one for objects in found for one in objects)
    try:
        _check(found, scene, frames.shape[2])
    except _Wrong as wrong:
        return CheckResult(False, str(wrong), seen)
    return CheckResult(True, "as wanted", seen)


class _Wrong(Exception):
    pass


def _check(found: Sequence[list[Found]], scene: dict[str, Any], size: int) -> None:
    wanted, count = scene["wanted"], len(found)
    if crowded := [frame for frame, objects in enumerate(found) if len(objects) > 1]:
        raise _Wrong(f"frame {crowded[0]} shows {len(found[crowded[0]])} objects, expected 1 at most")
    shown = [frame for frame, objects in enumerate(found) if objects]
    if not shown:
        raise _Wrong("no frame shows an object")
    here = {"appear": range(shown[0], count), "vanish": range(shown[-1] + 1)}.get(scene["task"], range(count))
    if shown != list(here) or (scene["task"] in ("appear", "vanish") and len(shown) == count):
        raise _Wrong(f"frames {shown} show an object, which is not: {scene['task']}")
    objects = [found[frame][0] for frame in shown]
    if odd := [one.shape for one in objects if one.shape != wanted["shape"]]:
        raise _Wrong(f"a {odd[0] or 'blob'}, expected a {wanted['shape']}")
    event = _colours(objects, wanted)
    _motion(objects, wanted, size, event)


def _colours(objects: Sequence[Found], wanted: dict[str, Any]) -> int:
    """The frame in which the colour is another, 0 where it never is."""
    expected = [wanted["colour"], *([wanted["other"]] if wanted["other"] else [])]
    names = [one.colour for one in objects]
    changes = [index for index in range(1, len(names)) if names[index] != names[index - 1]]
    if [names[0], *(names[index] for index in changes)] != expected:
        raise _Wrong(f"colours {', '.join(str(name) for name in names)}, expected {', then '.join(expected)}")
    return changes[0] if changes else 0


def _motion(objects: Sequence[Found], wanted: dict[str, Any], size: int, event: int) -> None:
    middles = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] for box in (one.box for one in objects)])
    parts, still = {"move": (middles[:event], middles[event:]), "recolour": (middles[event:], middles[:event])}.get(
        wanted["first"] or "", (middles, middles[:0])
    )
    if wanted["way"] is None:
        parts, still = middles[:0], middles
    if len(still) > 1 and np.linalg.norm(_slope(still)) * 32 / size > STILL:
        raise _Wrong("moves where it should stand still")
    if wanted["way"] is None:
        return
    slope = _slope(parts) * 32 / size if len(parts) > 1 else np.zeros(2)
    along = slope @ np.array(DIRECTIONS[wanted["way"]])
    across = np.abs(slope @ np.array(DIRECTIONS[wanted["way"]])[::-1])
    if not (along > STILL and across <= OFF_AXIS * along):
        raise _Wrong(f"moves by {slope[0]:.1f}, {slope[1]:.1f} a frame, expected {wanted['way']}")
    if wanted["speed"]:
        right = along < DEAD_ZONE[0] if wanted["speed"] == "slowly" else along > DEAD_ZONE[1]
        if not right:
            raise _Wrong(f"moves by {along:.1f} thirty-seconds of the side a frame, expected {wanted['speed']}")


def _slope(middles: np.ndarray) -> np.ndarray:
    """Pixels a frame, (2)."""
    return np.polyfit(np.arange(len(middles)), middles, 1)[0]
