"""One table of a ladder (bench.ladder): accuracy and calibration of both students and the training speed by method.

    python -m bench.ladder_table RUN... [--speed FILE]

FILE is the result of `python -m bench.methods --json` for the same recipe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.arguments import make_parser
from udskd.config.schema import STUDENTS
from udskd.files import read_text
from udskd.results import table
from udskd.results.runs import Group, group_runs, read_runs

METRICS = (("top-1 %", "top1", 1), ("NLL", "nll", 2), ("ECE", "ece", 3))


def section(groups: Sequence[Group], speed: Mapping[str, float]) -> table.Section:
    """A row for each teacher and method: mean ± standard deviation over seeds; images/s where measured."""
    models = [groups[0].model(role) for role in STUDENTS]
    header = ["method", *(f"{model}: {title}" for model in models for title, _, _ in METRICS), "images/s"]
    rows = []
    for model, found in table.teachers_of(groups).items():
        cells = [table.cell([teacher[key] for teacher in found], decimals) for _, key, decimals in METRICS]
        rows.append([f"teacher {model}", *cells, *[""] * len(METRICS), ""])
    for group in groups:
        cells = [table.cell(group.values(role, key), decimals) for role in STUDENTS for _, key, decimals in METRICS]
        rows.append([f"`{group.label}`", *cells, f"{speed[group.label]:.0f}" if group.label in speed else ""])
    return table.Section(f"{groups[0].runs[0].summary['dataset']['classes']} classes", header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("ladder_table", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders that bench.ladder wrote")
    parser.add_argument("--speed", type=Path, metavar="FILE", help="JSON of bench.methods")
    options = parser.parse_args(argv)
    speed = {}
    if options.speed:
        rows = json.loads(read_text(options.speed))["rows"]
        speed = {row["method"]: row["images_per_s"] for row in rows}
    print(table.markdown([section(group_runs(read_runs(options.runs)), speed)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
