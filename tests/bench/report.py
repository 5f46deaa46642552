"""A benchmark's figures as JSON, as a table, and as one picture, in docs/benchmarks/."""

import json
import os
import platform
import textwrap
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
COLOURS = ("#2b6cb0", "#a0aec0", "#dd6b20", "#805ad5", "#2f855a")
WIDTH, ROW, LEFT = 760, 22, 220
IN_A_LINE = 3


CONTAINERS = "containers in a nested LXD on btrfs"


def machine(runners: str = CONTAINERS) -> dict[str, Any]:
    """What the figures were taken on, and what the runners were."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "architecture": platform.machine(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "runners": runners,
    }


def write(
    name: str,
    title: str,
    unit: str,
    rows: list[dict[str, Any]],
    note: str = "",
    runners: str = CONTAINERS,
    **more: dict[str, Any],
) -> None:
    """``rows``: each a ``label`` and one number for every series, in the same order of keys.

    ``more`` is for figures that have another unit than the picture: they are in the JSON only.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "title": title, "unit": unit, "machine": machine(runners), "rows": rows, "note": note}
    (FOLDER / f"{name}.json").write_text(json.dumps({**content, **more}, indent=2) + "\n")
    (FOLDER / f"{name}.svg").write_text(picture(title, unit, rows, note))
    print(f"\n{title} ({unit})")
    for row in rows:
        print("  " + "   ".join(f"{key} {value}" for key, value in row.items()))
    if note:
        print(f"  {note}")


def picture(title: str, unit: str, rows: list[dict[str, Any]], note: str) -> str:
    """Horizontal bars, a group for each row."""
    series = [key for key in rows[0] if key != "label"]
    most = max((row[key] for row in rows for key in series if row[key] is not None), default=1) or 1
    group = ROW * len(series) + 14
    above = 54 + 20 * -(-len(series) // IN_A_LINE)
    lines = textwrap.wrap(note, 125)
    height = above + group * len(rows) + 12 + 15 * max(1, len(lines))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="14" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for index, key in enumerate(series):
        x, y = 14 + index % IN_A_LINE * 245, 42 + 20 * (index // IN_A_LINE)
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[index]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 10}" font-size="12">{escape(key)}</text>')
    for number, row in enumerate(rows):
        top = above + number * group
        parts.append(f'<text x="14" y="{top + 14}" font-size="12">{escape(str(row["label"]))}</text>')
        for index, key in enumerate(series):
            value = row[key]
            if value is None:
                continue
            length = max(2.0, value / most * (WIDTH - LEFT - 110))
            y = top + index * ROW
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="16" fill="{COLOURS[index]}"/>')
            parts.append(
                f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}" font-size="12">{value:g} {escape(unit)}</text>'
            )
    for number, line in enumerate(reversed(lines)):
        parts.append(
            f'<text x="14" y="{height - 10 - 15 * number}" font-size="11" fill="#4a5568">{escape(line)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
