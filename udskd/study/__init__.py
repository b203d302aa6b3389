"""`udskd study uncertainty`: measures whether the ways of weighting images and of shaping targets do what they claim.

The images are generated, so that the true p(class | image) of every image is known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from udskd.config.schema import STUDENTS, Config
from udskd.data import EmbeddedSet
from udskd.errors import ConfigError, printable
from udskd.files import write_atomic
from udskd.results import table
from udskd.study import figure, training_runs
from udskd.study.measurements import measure_seed, measure_truth, merge_seeds
from udskd.study.tables import Chapter, chapters

FOLDER = Path("runs/study")
NAME = "uncertainty"


def uncertainty(output: Path | None = None, seeds: int = 1, epochs: int | None = None) -> int:
    """Train the runs of every seed, compare them with the true posterior, and print tables.

    Write uncertainty.md (the tables), uncertainty.json (every number of each seed) and uncertainty.png.

    Args:
        output: folder of the runs and the results, runs/study by default. Complete runs in it are kept, interrupted
            runs continue.
        seeds: number of seeds, from 0 on.
        epochs: epochs of every teacher and student, by default those of the recipe of `udskd demo`.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: seeds or epochs is less than 1, or the folder holds runs with other options.
        CheckpointError, DataError: a run's files cannot be read, or the results cannot be written.
    """
    for option, value in (("--seeds", seeds), ("--epochs", epochs)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}")
    folder, shared, images = output or FOLDER, training_runs.settings(epochs), EmbeddedSet("val")
    training_runs.train_all(shared, folder, seeds)
    tables, weights = zip(*(measure_seed(shared, folder, seed, images) for seed in range(seeds)), strict=True)
    true_tables, true_weights = measure_truth(shared, folder, images)
    measured, truth = merge_seeds(tables), merge_seeds([true_tables])
    models = {role: str(getattr(shared, role).model) for role in STUDENTS}
    report = chapters(measured, truth, models, images)
    command = " ".join(_command(output, seeds, epochs))
    settings = {"seeds": seeds, "teacher_epochs": teacher_epochs(shared), "epochs": shared.training.epochs}
    numbers = {"command": command, **settings, "images": len(images), "measured": measured, "truth": truth}
    _write(folder / f"{NAME}.md", document(command, shared, seeds, report))
    _write(folder / f"{NAME}.json", json.dumps(numbers, indent=2) + "\n")
    figure.draw_study(measured, truth, (weights[0], true_weights), models, images, folder / f"{NAME}.png")
    show(report)  # after the files are written: there may be no output to print to
    print(f"\ntables, numbers and figure: {printable(str(folder / NAME))}.md, .json, .png")
    return 0


def show(report: Sequence[Chapter]) -> None:
    """Print every chapter."""
    for chapter in report:
        print(f"\n{chapter.title}\n\n{chapter.text}\n")
        table.show(chapter.sections)


def document(command: str, shared: Config, seeds: int, report: Sequence[Chapter]) -> str:
    """The study as a Markdown document."""
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    introduction = (
        f"# The uncertainty study\n\n    {command}\n\nGenerated images whose true p(class | image) is known; {over}. "
        f"All runs of a seed learn from one teacher. Epochs: teacher {teacher_epochs(shared)}, students "
        f"{shared.training.epochs}; all options that a run's name does not mention are those of `udskd demo`. "
        f"The numbers of each seed are in {NAME}.json.\n\n![{NAME}]({NAME}.png)\n"
    )
    return "\n".join([introduction, *(f"{chapter.markdown()}\n" for chapter in report)])


def teacher_epochs(shared: Config) -> int:
    """The number of epochs that the shared teacher is trained."""
    return shared.teacher.epochs or shared.training.epochs


def _command(output: Path | None, seeds: int, epochs: int | None) -> list[str]:
    given = {"--seeds": seeds, "--epochs": epochs, "--output": output}
    options = [f"{name} {value}" for name, value in given.items() if value is not None]
    return ["udskd study uncertainty", *options]


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode())
