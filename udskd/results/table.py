"""`udskd compare`: one table of mean ± standard deviation over seeds, and figures, from finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from udskd.config.schema import STUDENTS
from udskd.errors import printable
from udskd.files import make_folder, write_atomic
from udskd.results.runs import Group, group_runs, read_runs

METRICS = (
    ("top-1 %", "top1", 2),
    ("NLL", "nll", 3),
    ("ECE", "ece", 3),
    ("Brier", "brier", 3),
    ("H", "entropy", 3),
    ("inter ‰", "disagreement", 2),
    ("KL truth", "posterior_kl", 3),
    ("H corr.", "entropy_corr", 3),
)
"""Column title, key in summary.json, decimals.

H: the mean entropy of a student's predictions, in nats (uncertainty within a student). inter: a thousand times the
variance of a prediction over the seeds (uncertainty between students). The last two exist only where the true posterior
is known: the mean KL divergence of the predictions from it, and the rank correlation of their entropies with its
entropies.
"""


@dataclass(frozen=True)
class Section:
    """A titled table."""

    title: str
    header: list[str]
    rows: list[list[str]]


def compare(runs: Sequence[Path], output: Path | None = None) -> int:
    """Print the table of the runs; write table.md, accuracy.png, calibration.png and curves.png into a folder.

    Args:
        runs: folders that `udskd train` wrote. Incomplete runs are left out, with a warning.
        output: the folder to write into, by default `compare` beside the first run.

    Returns:
        0, the exit code.

    Raises:
        DataError: a folder holds no run, no run is complete, or the runs have different datasets.
    """
    from udskd.results import plots  # matplotlib takes a second to import

    groups = group_runs(read_runs(runs))
    sections = table(groups)
    folder = output or runs[0].resolve().parent / "compare"
    make_folder(folder)
    write_atomic(folder / "table.md", f"{markdown(sections)}\n".encode())
    plots.draw_accuracy(groups, folder / "accuracy.png")
    plots.draw_calibration(groups, folder / "calibration.png")
    plots.draw_curves(groups, folder / "curves.png")
    show(sections)  # after the files are written: there may be no output to print to
    print(f"\ntable and figures: {printable(str(folder))}")
    return 0


def table(groups: Sequence[Group]) -> list[Section]:
    """A section for each student network: first the teachers, then the groups."""
    shown = [
        metric for metric in METRICS if any(group.values(role, metric[1]) for group in groups for role in STUDENTS)
    ]
    header = ["method", "seeds", *(title for title, _, _ in shown)]
    teachers = [teacher_row(model, found, shown) for model, found in teachers_of(groups).items()]
    sections = []
    for role in STUDENTS:
        for model in dict.fromkeys(group.model(role) for group in groups):
            students = [student_row(group, role, shown) for group in groups if group.model(role) == model]
            sections.append(Section(f"{role}: {model}", header, teachers + students))
    return sections


def student_row(group: Group, role: str, metrics: Sequence[tuple[str, str, int]]) -> list[str]:
    """The cells of a group's students of one role."""
    cells = [cell(group.values(role, key), digits) for _, key, digits in metrics]
    return [group.label, str(len(group.runs)), *cells]


def teacher_row(model: str, found: Sequence[dict[str, Any]], metrics: Sequence[tuple[str, str, int]]) -> list[str]:
    """The cells of the teachers of one model."""
    cells = [cell([teacher[key] for teacher in found if key in teacher], digits) for _, key, digits in metrics]
    return [f"teacher {model}", str(len(found)), *cells]


def teachers_of(groups: Sequence[Group]) -> dict[str, list[dict[str, Any]]]:
    """Metrics of every distinct teacher, by its model and further training. Runs of one seed often share a teacher."""
    found: dict[str, dict[object, dict[str, Any]]] = {}
    for run in (run for group in groups for run in group.runs):
        if metrics := run.summary.get("teacher"):
            identity = run.options["seed"], metrics["top1"], metrics["nll"]
            name = ", ".join([run.options["teacher.model"], *([metrics["stage"]] if "stage" in metrics else [])])
            found.setdefault(name, {})[identity] = metrics
    return {model: list(teachers.values()) for model, teachers in found.items()}


def cell(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation (n - 1); for one value the value alone, for none ""."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def show(sections: Sequence[Section]) -> None:
    """Print a drawn table on a terminal, Markdown elsewhere."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        print(markdown(sections))
        return
    for section in sections:
        drawn = Table(
            title=section.title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD
        )
        for number, title in enumerate(section.header):
            drawn.add_column(title, justify="right" if number else "left", overflow="fold")
        for row in section.rows:
            drawn.add_row(*row)
        console.print(drawn)


def markdown(sections: Sequence[Section]) -> str:
    """GitHub tables, with columns padded to equal width."""
    parts = []
    for section in sections:
        grid = [section.header, *section.rows]
        widths = [max(len(row[column]) for row in grid) for column in range(len(section.header))]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in grid]
        rule = "|".join("-" * (width + 1) + (":" if number else "-") for number, width in enumerate(widths))
        parts.append("\n".join([f"**{section.title}**", "", lines[0], f"|{rule}|", *lines[1:]]))
    return "\n\n".join(parts)
