"""The commands. Each reads its command line first, and then imports what it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from udskd import __version__
from udskd.cli.options import SETTINGS, RecipeCommand, read_config
from udskd.config import recipes, schema

FOLDER = click.Path(path_type=Path)


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def root() -> None:
    """Distil a frozen teacher into two students that also teach each other."""


@root.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def show_help(context: click.Context, command: Sequence[str]) -> None:
    """Show the help of a command, such as: udskd help train."""
    shown, found = context.find_root(), context.find_root().command
    for name in command:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{shown.command_path} has no command {name!r}")
        _, inner, _ = found.resolve_command(shown, [name])
        assert inner is not None  # resolve_command raises for a name that it does not find
        found, shown = inner, click.Context(inner, info_name=name, parent=shown, **SETTINGS)
    print(found.get_help(shown))


@root.command("recipes")
def list_recipes() -> None:
    """List the recipes that commands take by name."""
    for name, path in recipes.recipes().items():
        print(f"{name:<20}{recipes.title(path)}")


@root.command(cls=RecipeCommand)
@click.argument("recipe", type=click.Path(), required=False)
@click.option(
    "--resume",
    metavar="RUN|auto",
    help=(
        "Continue the run in this folder after the last step that it saved; auto: the run that these options would "
        "start, if it was begun."
    ),
)
@click.option(
    "--previous",
    is_flag=True,
    help="With --resume: continue from the state saved before the last one, if the last one is damaged.",
)
@click.pass_obj
def train(overrides: dict[str, Any], recipe: str | None, resume: str | None, previous: bool) -> None:
    """Train (or load) the teacher, then both students.

    RECIPE is a TOML file, or the name of a recipe (udskd recipes). The options replace its values.
    """
    run = Path(resume) if resume and resume != "auto" else None
    if recipe is None:
        recipe = _recipe_of(run)
    config = read_config(recipe, overrides)
    begun = schema.run_folder(config)
    if resume == "auto" and os.path.isfile(begun / "config.toml"):
        run = begun
    if previous and run is None:
        raise click.ClickException("--previous needs --resume RUN: it chooses the state from which that run continues")
    from udskd import training

    training.train(config, resume=run, previous=previous)


def _recipe_of(run: Path | None) -> str:
    """The recipe in the folder of a run."""
    if run is None:
        raise click.ClickException(
            "give a recipe (udskd train RECIPE.toml) or a run to continue (udskd train --resume RUN)"
        )
    if not os.path.isfile(run / "config.toml"):
        raise click.ClickException(f"{run} is not a run folder: it has no config.toml")
    return str(run / "config.toml")


@root.command("eval")
@click.argument("run", type=FOLDER)
@click.option("--data.root", "data_root", metavar="DIR", help="Other images of the same classes.")
def evaluate(run: Path, data_root: str | None) -> None:
    """Evaluate the networks of a run on its validation images.

    RUN is a folder that udskd train wrote.
    """
    from udskd import training

    training.evaluate_run(run, data_root)


@root.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option("--output", metavar="DIR", type=FOLDER, help="Folder of the table and the plots.")
def compare(runs: Sequence[Path], output: Path | None) -> int:
    """Make a table and plots (PNG) of several runs.

    RUN is a folder that udskd train wrote.
    """
    from udskd.results import table

    return table.compare(runs, output)


@root.command()
@click.option("--output", metavar="DIR", type=FOLDER, help="Folder of the runs, the table and the figure.")
def demo(output: Path | None) -> int:
    """Train ce, kd and udskd on generated images, without a download."""
    from udskd.demo import demo

    return demo.main(output)


@root.command()
@click.argument("source", metavar="SRC", type=FOLDER)
@click.argument("destination", metavar="DST", type=FOLDER)
@click.option("--short-side", metavar="PIXELS", default=256, help="Shrink images to this shorter side.")
@click.option("--quality", metavar="Q", default=90, help="Quality of the JPEGs that are written, 1 to 100.")
@click.option("--originals", is_flag=True, help="Keep every file as it is; training gives the same bits.")
@click.option("--classes", metavar="N", type=int, help="Pack the first N classes in sorted order.")
@click.option("--workers", metavar="N", default=os.cpu_count() or 1, show_default="all cores", help="Threads.")
@click.option("--max-pixels", metavar="N", default=schema.DataConfig.max_pixels, help="As data.max_pixels of a recipe.")
def pack(
    source: Path,
    destination: Path,
    short_side: int,
    quality: int,
    originals: bool,
    classes: int | None,
    workers: int,
    max_pixels: int,
) -> int:
    """Pack a folder of images into two files that are read faster.

    SRC holds train/CLASS/* and val/CLASS/*; DST gets train.pack and val.pack.
    """
    from udskd.cli import pack

    return pack.run(source, destination, None if originals else short_side, quality, classes, workers, max_pixels)


@root.command(cls=RecipeCommand)
@click.argument("recipe", type=click.Path())
@click.option(
    "--epochs",
    type=int,
    help="Epochs to cache; training.epochs by default. Those that the folder holds already stay.",
)
@click.pass_obj
def cache_teacher(overrides: dict[str, Any], recipe: str, epochs: int | None) -> None:
    """Compute the teacher's logits once, for several runs.

    RECIPE is a TOML file, or the name of a recipe (udskd recipes). --output is the folder of the cache.
    """
    if "output" not in overrides:
        raise click.ClickException("give a recipe and a folder: udskd cache-teacher RECIPE.toml --output DIR")
    config = read_config(recipe, overrides)
    from udskd.training.teacher_cache.writer import cache_teacher

    cache_teacher(config, Path(config.output or ""), epochs)


@root.group()
def doctor() -> None:
    """Find what limits the speed of training, and what to change."""


@doctor.command(cls=RecipeCommand)
@click.argument("recipe", type=click.Path(), required=False)
@click.pass_obj
def data(overrides: dict[str, Any], recipe: str | None) -> int:
    """Measure reading, decoding, loading and the step on your images.

    RECIPE is a TOML file, or the name of a recipe (udskd recipes).
    """
    config = read_config(recipe, overrides)
    from udskd import doctor

    return doctor.data(config)


@root.group()
def study() -> None:
    """Study the methods where the truth is known."""


@study.command()
@click.option("--output", metavar="DIR", type=FOLDER, help="Folder of the runs, tables and figure (runs/study).")
@click.option("--seeds", metavar="N", default=1, help="Runs of each kind.")
@click.option("--epochs", metavar="N", type=int, help="Epochs of each training, also the teacher's, for a quick look.")
def uncertainty(output: Path | None, seeds: int, epochs: int | None) -> int:
    """Compare every weighting of udskd, cud and variance on generated images, whose true posterior is known."""
    from udskd import study

    return study.uncertainty(output, seeds, epochs)
