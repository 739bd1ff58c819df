"""A benchmark's result for people: a card, a table, and what to beware of.

It knows strings only; the numbers are bench.py's.
"""

from __future__ import annotations

import csv
import io
import json
from textwrap import wrap
from typing import Any

from edgemm.bench.components import render_operators
from edgemm.bench.loadgen import render_loadgen
from edgemm.bench.rows import ABBREVIATIONS
from edgemm.report.page import text_table

__all__ = ["card_lines", "render_page", "show_figure", "show_name", "FORMATS", "as_csv", "as_json", "as_jsonl"]

COLUMNS = ("", "mean ± sd", "p50", "p90", "p95", "p99", "n")
WIDTH = 100  # of the table and of what explains it


def render_page(result: dict[str, Any]) -> str:
    """Markdown, readable as it is."""
    lines = [
        "=== Performance summary ===",
        "",
        *card_lines(result),
        "",
        *_table(result["rows"]),
        "",
        *_timed_lines(result["rows"]),
        "",
        *(_part_lines(result) if "parts" in result else []),
        *(_memory_lines(result["memory"]) if "memory" in result else []),
        *(_energy_lines(result["energy"]) if "energy" in result else []),
        *(render_loadgen(result["loadgen"]) if "loadgen" in result else []),
        *_operator_lines(result.get("operators", {})),
    ]
    if result["warnings"]:
        lines += ["", *(f"warning: {warning}" for warning in result["warnings"])]
    return "\n".join(lines)


def card_lines(result: dict[str, Any]) -> list[str]:
    card, measured = result["card"], result["measured"]
    cores = f"{card['cores_usable']:g} core{'' if card['cores_usable'] == 1 else 's'}"
    precision = ", ".join(f"{name} {kind}" for name, kind in card["precision"].items())
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    board = f"{card['board']}, " if card["board"] else ""
    work = ", ".join(_counted(count, name.replace("_", " ")) for name, count in measured.items())
    return [
        f"bundle   {card['bundle']} ({card['bundle_sha256'][:12]}), target {card['target']}: {precision}",
        f"device   {card['device']} with {card['backend']} on {board}{card['cpu']}, {cores} "
        f"({card['power_mode'] or 'power mode unknown'}), "
        f"{card['threads']} thread{'' if card['threads'] == 1 else 's'}, load average {card['load_average']:g}",
        f"versions edgemm {card['edgemm']} at {card['commit'] or 'no commit'}, Python {card['python']}, {versions}",
        f"work     {work}; warm-up runs, thrown away: {result['plan']['warmup']}",
    ]


def _counted(count: int, name: str) -> str:
    """Names are in the plural: 64 new tokens, 1 process."""
    return f"{count} {name if count != 1 else name.removesuffix('es' if name.endswith('sses') else 's')}"


def _operator_lines(operators: dict[str, Any]) -> list[str]:
    pages = [render_operators(table, name) for name, table in operators.items()]
    return ["\n\n".join(pages)] if pages else []


def _part_lines(result: dict[str, Any]) -> list[str]:
    """What takes the time of a reply and of a picture; and the first calls, which no row holds."""
    lines = []
    for whole, parts in result["parts"].items():
        told = ", ".join(f"{part['part'].replace('_', ' ')} {part['share']:.0%}" for part in parts)
        lines += [f"{'parts':<9}of a{'n' if whole[0] in 'aeiou' else ''} {whole}: {told}"] if told else []
    first = ", ".join(f"{name} {_three_digits(ms)} ms" for name, ms in (result["first_call_ms"] or {}).items())
    return [*lines, f"first    calls of a fresh process, in no row above: {first}"] if first else lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    told = []
    if memory["kv_bytes"]:
        told.append(f"keys and values {memory['kv_bytes'] / 1e6:.3g} MB ({memory['kv_bytes_a_token']} bytes a token)")
    if memory["device_bytes"]:
        told.append(f"the card held {memory['device_bytes'] / 1e6:.0f} MB, other programs' share included")
    return [f"memory   {'; '.join(told)}"] if told else []


def _energy_lines(energy: dict[str, Any]) -> list[str]:
    """A machine without sensors gives a line with the reason."""
    covers = "; ".join(f"{sensor['source']}: {sensor['covers']}" for sensor in energy["sensors"])
    idle = _three_digits(energy["idle_w"])
    lines = [f"energy   {covers}, {energy['rate_hz']:g} samples a second, idle {idle} W"] if covers else []
    for name, figure in energy["per"].items():
        gross, above = (figure[key]["p50"] if figure[key] else None for key in ("gross_j", "above_idle_j"))
        told = f"gross, {_three_digits(above)} J above idle: {figure['timed']}" if gross else f"({figure['reason']})"
        lines.append(f"energy   {_three_digits(gross)} J a{'n' if name[0] in 'aeiou' else ''} {name} {told}")
    heat = energy["heat"]["zones"] or {}
    if heat:
        hottest = max(heat, key=lambda name: heat[name]["highest_c"])
        lines.append(f"heat     {hottest} reached {heat[hottest]['highest_c']:.0f} °C")
    return lines + [f"warning: energy: {problem}" for problem in energy["problems"]]


def _table(rows: dict[str, Any]) -> list[str]:
    body = [[show_name(name), *_cells(name, row)] for name, row in rows.items()]
    cells = text_table([COLUMNS, *body], gap=" | ")
    width = max(map(len, cells))
    rule = " | ".join("-" * max(map(len, column)) for column in zip(COLUMNS, *body))
    return [f"| {line:<{width}} |" for line in [cells[0], rule, *cells[1:]]]


def _timed_lines(rows: dict[str, Any]) -> list[str]:
    """What the clock saw, row by row, after the median's interval where several processes give one."""
    indent = 2 + max(len(show_name(name)) for name in rows)
    lines = []
    for name, row in rows.items():
        told = row["timed"]
        if row["p50_interval"]:
            low, high = (show_figure(name, end) for end in row["p50_interval"])
            told = f"p50 {show_figure(name, row['p50'])} ({low} to {high}); {told}"
        lines += wrap(told, WIDTH, initial_indent=f"{show_name(name):<{indent}}", subsequent_indent=" " * indent)
    return lines


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    mean, space, unit = show_figure(name, row["mean"]).partition(" ")
    spread = "" if row["sd"] is None else f" ± {show_figure(name, row['sd']).partition(' ')[0]}"
    figures = (show_figure(name, row[key]) for key in ("p50", "p90", "p95", "p99"))
    return [f"{mean}{spread}{space}{unit}", *figures, str(row["count"])]


def show_name(name: str) -> str:
    """With what the field calls it, where it has a name for it."""
    return f"{name} ({ABBREVIATIONS[name]})" if name in ABBREVIATIONS else name


def show_figure(name: str, value: float | None) -> str:
    """By the unit that the row's name ends in."""
    return (_megabytes if name.endswith("_bytes") else _three_digits)(value)


def _three_digits(value: float | None) -> str:
    """Fewer below a hundredth: a table has no room for them, the JSON document has."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 or not value else f"{value:.{2 if abs(value) >= 0.001 else 1}g}"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f} MB"


# A benchmark's result for programs: one JSON line, a line a row, or a table of commas.

FORMATS = ("md", "json", "jsonl", "csv")
OF_CARD = ("bundle", "bundle_sha256", "target", "device", "backend", "threads", "board", "power_mode", "cpu", "commit")
OF_PLAN = ("prompt_tokens", "new_tokens", "steps")
FIGURES = ("count", "mean", "sd", "coefficient_of_variance", "minimum", "p50", "p90", "p95", "p99", "maximum")


def as_json(result: dict[str, Any]) -> str:
    return json.dumps(result, separators=(",", ":"), allow_nan=False)


def as_jsonl(result: dict[str, Any]) -> str:
    """A line a row; each stands alone, samples included."""
    lines = [as_json({**line, "samples": result["rows"][line["row"]]["samples"]}) for line in _lines(result)]
    return "\n".join(lines)


def as_csv(result: dict[str, Any]) -> str:
    """What could not be measured is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["row", *FIGURES, "timed", *OF_CARD, *OF_PLAN], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(result))
    return stream.getvalue().rstrip("\n")


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    card = {name: result["card"][name] for name in OF_CARD}
    work = {name: result["measured"].get(name) for name in OF_PLAN}
    return [
        {"row": name, **{figure: row[figure] for figure in FIGURES}, "timed": row["timed"], **card, **work}
        for name, row in result["rows"].items()
    ]
