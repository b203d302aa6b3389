"""`udskd study uncertainty`: does each way of weighting images, and of shaping targets, do what it claims?

On generated images the true p(class | image) of every image is known, so that it can be measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from udskd.config.schema import STUDENTS, Config
from udskd.data import EmbeddedSet
from udskd.errors import ConfigError
from udskd.files import write_atomic
from udskd.results import table
from udskd.study import figure, training_runs
from udskd.study.seed import measure_seed, measure_truth, merge_seeds
from udskd.study.tables import Chapter, chapters

FOLDER = Path("runs/study")
NAME = "uncertainty"


def uncertainty(output: Path | None = None, seeds: int = 1, epochs: int | None = None) -> int:
    """Trains the runs of every seed, measures them against the truth, and prints tables.

    Writes uncertainty.md (the tables), uncertainty.json (every number of each seed) and uncertainty.png.

    Args:
        output: folder of the runs and the results, runs/study by default. Runs that it holds already are kept, or
            continued where they were interrupted.
        seeds: of how many seeds, from 0 on.
        epochs: of every teacher and student; those of the recipe of `udskd demo` by default.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: seeds or epochs is less than 1, or the folder holds runs with other options.
        CheckpointError: a run's files cannot be read, or the results not be written.
    """
    for option, value in (("--seeds", seeds), ("--epochs", epochs)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}")
    folder, shared, images = output or FOLDER, training_runs.settings(epochs), EmbeddedSet("val")
    training_runs.train_all(shared, folder, seeds)

    tables, weights = zip(*(measure_seed(shared, folder, seed, images) for seed in range(seeds)), strict=True)
    best, best_weights = measure_truth(shared, folder, images)
    measured, truth = merge_seeds(tables), merge_seeds([best])
    models = {role: str(getattr(shared, role).model) for role in STUDENTS}
    answers = chapters(measured, truth, models, images)
    show(answers)

    command = " ".join(_command(output, seeds, epochs))
    settings = {"seeds": seeds, "teacher_epochs": teacher_epochs(shared), "epochs": shared.training.epochs}
    numbers = {"command": command, **settings, "images": len(images), "measured": measured, "truth": truth}
    _write(folder / f"{NAME}.md", document(command, shared, seeds, answers))
    _write(folder / f"{NAME}.json", json.dumps(numbers, indent=2) + "\n")
    figure.draw(measured, truth, (weights[0], best_weights), models, images, folder / f"{NAME}.png")
    print(f"\ntables, numbers and picture: {folder / NAME}.md, .json, .png")
    return 0


def show(answers: Sequence[Chapter]) -> None:
    """Prints every chapter."""
    for chapter in answers:
        print(f"\n{chapter.title}\n\n{chapter.text}\n")
        table.show(chapter.sections)


def document(command: str, shared: Config, seeds: int, answers: Sequence[Chapter]) -> str:
    """The Markdown of the whole study."""
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    introduction = (
        f"# The uncertainty study\n\n    {command}\n\nGenerated images whose true p(class | image) is known; {over}. "
        f"All runs of a seed learn from one teacher. Epochs: teacher {teacher_epochs(shared)}, students "
        f"{shared.training.epochs}; all else that the runs' names do not say is as in the recipe of `udskd demo`. "
        f"The numbers of each seed are in {NAME}.json.\n\n![{NAME}]({NAME}.png)\n"
    )
    return "\n".join([introduction, *(f"{chapter.markdown()}\n" for chapter in answers)])


def teacher_epochs(shared: Config) -> int:
    """Of the teacher's own training."""
    return shared.teacher.epochs or shared.training.epochs


def _command(output: Path | None, seeds: int, epochs: int | None) -> list[str]:
    given = {"--seeds": seeds, "--epochs": epochs, "--output": output}
    options = [f"{name} {value}" for name, value in given.items() if value is not None]
    return ["udskd study uncertainty", *options]


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode())
