"""The command line: udskd train, eval, compare, demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from udskd import recipe
from udskd._version import __version__
from udskd.config import Config
from udskd.errors import ConfigError, Interrupted, UdskdError
from udskd.options import parse

HELP = """usage: udskd COMMAND ...

Distil a frozen teacher into two students that also teach each other.

commands:
  train RECIPE.toml [OPTIONS]   train (or load) the teacher, then both students; --resume RUN continues a run
  eval RUN                      evaluate a run's networks
  compare RUN...                table and plots of several runs
  demo                          teacher, then ce, kd and udskd on a small generated set, no download

udskd COMMAND --help shows each command's options; udskd --version the version.
"""


@dataclass(frozen=True)
class TrainCommand(Config):
    """The options of `udskd train`: a Config's, and one more."""

    resume: str | None = None
    """Continue the run in this folder after its last complete epoch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a mistake that the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except Interrupted as error:
        print(f"udskd: {error}", file=sys.stderr)
        return 130
    except UdskdError as error:
        print(f"udskd: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("udskd: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"udskd {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError(
            f'unknown command "{arguments[0]}"{recipe.did_you_mean(arguments[0], COMMANDS)}; known are {known}'
        )
    return COMMANDS[arguments[0]](arguments[1:])


def _train(argv: list[str]) -> int:
    config, resume = train_arguments(argv)
    from udskd import training  # torchvision and the rest of it only once the options are known to be right

    training.train(config, resume=resume)
    return 0


def train_arguments(argv: list[str]) -> tuple[Config, Path | None]:
    """The options of `udskd train`: the recipe (or the resumed run's config), then what the command line changes."""

    def read(config: Config) -> tuple[TrainCommand, list[str]]:
        usage = (
            "Give a RECIPE.toml first; the options replace its values. The loss's options also go without their prefix."
        )
        default = TrainCommand(**_fields(config))
        return parse(default, argv, prog="udskd train [RECIPE.toml]", description=usage, known=("resume",))

    command, positional = read(Config())
    if len(positional) > 1:
        raise ConfigError(f'unexpected argument "{positional[1]}" after the recipe {positional[0]}')
    resume = None if command.resume is None else Path(command.resume)
    if positional:
        command, _ = read(recipe.load(positional[0]))
    elif resume is not None:
        if not (resume / "config.toml").is_file():
            raise ConfigError(f"{resume} is not a run folder: it has no config.toml")
        command, _ = read(recipe.load(resume / "config.toml"))
    else:
        raise ConfigError("give a recipe (udskd train RECIPE.toml) or a run to continue (udskd train --resume RUN)")
    config = Config(**_fields(command))
    recipe.check(config)
    return config, resume


def _fields(config: Config) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(Config)}


def _eval(argv: list[str]) -> int:
    parser = _Parser(prog="udskd eval", description="Evaluate the networks of a run on its validation images.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder that udskd train wrote")
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="other images of the same classes")
    options = parser.parse_args(argv)
    from udskd import training

    training.evaluate_run(options.run, options.root)
    return 0


def _compare(argv: list[str]) -> int:
    parser = _Parser(prog="udskd compare", description="Table and plots (PNG) of several runs.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders that udskd train wrote")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the table and the plots go")
    options = parser.parse_args(argv)
    from udskd import report

    return report.compare(options.runs, options.output)


def _demo(argv: list[str]) -> int:
    parser = _Parser(prog="udskd demo", description="Teacher, then ce, kd and udskd on the generated set.")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the runs, the table and the picture go")
    options = parser.parse_args(argv)
    from udskd import demo

    return demo.main(options.output)


class _Parser(argparse.ArgumentParser):
    """argparse with our way of saying what is wrong."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        options, rest = self.parse_known_args(argv)
        if rest:
            names = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f'unknown option "{rest[0]}" of {self.prog}{recipe.did_you_mean(rest[0], names)}')
        return options

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"{self.prog}: {message}")


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": _train, "eval": _eval, "compare": _compare, "demo": _demo}

if __name__ == "__main__":
    sys.exit(main())
