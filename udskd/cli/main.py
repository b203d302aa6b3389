"""The command line: udskd train, eval, compare, and what goes before them."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from udskd._version import __version__
from udskd.cli import arguments
from udskd.config import recipes, suggest
from udskd.errors import ConfigError, Interrupted, PeerFailed, UdskdError, printable

T = TypeVar("T")
HELP = """usage: udskd COMMAND ...

Distil a frozen teacher into two students that also teach each other.

commands:
  recipes                       the recipes that a command takes by name
  train RECIPE.toml [OPTIONS]   train (or load) the teacher, then both students; --resume RUN continues a run
  eval RUN                      evaluate a run's networks
  compare RUN...                table and plots of several runs
  demo                          teacher, then ce, kd and udskd on a small generated set, no download
  pack SRC DST                  images of a folder tree as two files that are read faster
  cache-teacher RECIPE.toml     the teacher's answers beforehand, for several runs that learn from it
  study uncertainty             do the weights, and shaped targets, know what is uncertain? On the generated set
  doctor data [RECIPE.toml]     what limits the speed of training on your images, and what to change

udskd COMMAND --help shows each command's options; udskd --version the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a mistake that the user can mend, 130 when interrupted."""
    try:
        code = _run(argv)
    except Exception:
        if not _on_several_gpus():
            raise
        traceback.print_exc()
        code = 1
    if code and _on_several_gpus():  # NCCL's own farewell would wait for processes that wait for us
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _on_several_gpus() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and int(os.environ.get("WORLD_SIZE") or 1) > 1 and bool(torch.cuda.is_initialized())


def _run(argv: Sequence[str] | None) -> int:
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # all processes of a run stop together, and one says so
            print(printable(f"udskd: {error}"), file=sys.stderr)
        return 130
    except PeerFailed as error:
        if str(error):
            print(printable(f"udskd: error: {error}"), file=sys.stderr)
        return 1
    except UdskdError as error:
        print(printable(f"udskd: error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("udskd: interrupted", file=sys.stderr)
        return 130


def _told_once(read: Callable[[], T]) -> T:
    """What read() makes of the command line. All processes of a run have the same, so that one of those on this machine
    says what is wrong with it."""
    try:
        return read()
    except UdskdError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        time.sleep(20)  # till then torchrun ends us, because that one has ended
        raise PeerFailed(str(error)) from None


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"udskd {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError(f'unknown command "{argv[0]}"{suggest.did_you_mean(argv[0], COMMANDS)}; known are {known}')
    return COMMANDS[argv[0]](argv[1:])


def _train(argv: list[str]) -> int:
    config, resume, previous = _told_once(lambda: arguments.train(argv))
    from udskd import training  # torchvision and the rest of it only once the options are known to be right

    training.train(config, resume=resume, previous=previous)
    return 0


def _recipes(argv: list[str]) -> int:
    parser = _Parser(prog="udskd recipes", description="The recipes that come with udskd: udskd train NAME.")
    parser.parse_args(argv)
    for name, path in recipes.recipes().items():
        print(f"{name:<20}{recipes.title(path)}")
    return 0


def _eval(argv: list[str]) -> int:
    parser = _Parser(prog="udskd eval", description="Evaluate the networks of a run on its validation images.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder that udskd train wrote")
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="other images of the same classes")
    options = _told_once(lambda: parser.parse_args(argv))
    from udskd import training

    training.evaluate_run(options.run, options.root)
    return 0


def _compare(argv: list[str]) -> int:
    parser = _Parser(prog="udskd compare", description="Table and plots (PNG) of several runs.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders that udskd train wrote")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the table and the plots go")
    options = parser.parse_args(argv)
    from udskd.results import table

    return table.compare(options.runs, options.output)


def _demo(argv: list[str]) -> int:
    parser = _Parser(prog="udskd demo", description="Teacher, then ce, kd and udskd on the generated set.")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the runs, the table and the picture go")
    options = parser.parse_args(argv)
    from udskd.demo import demo

    return demo.main(options.output)


def _pack(argv: list[str]) -> int:
    parser = _Parser(prog="udskd pack", description="Pack DIR/train/CLASS/* and DIR/val/CLASS/* into two files.")
    parser.add_argument("source", metavar="SRC", type=Path, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder for train.pack and val.pack")
    parser.add_argument(
        "--short-side", metavar="PIXELS", type=int, default=256, help="shrink to this shorter side (256)"
    )
    parser.add_argument(
        "--quality", metavar="Q", type=int, default=90, help="of the JPEGs that are made, 1 to 100 (90)"
    )
    parser.add_argument(
        "--originals", action="store_true", help="keep every file as it is: trains bit for bit as the tree"
    )
    parser.add_argument("--classes", metavar="N", type=int, help="the first N classes in sorted order")
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count() or 1, help="threads (all cores)")
    options = parser.parse_args(argv)
    from udskd.cli import pack

    side = None if options.originals else options.short_side
    return pack.run(options.source, options.destination, side, options.quality, options.classes, options.workers)


def _cache_teacher(argv: list[str]) -> int:
    config, output, epochs = arguments.cache(argv)
    from udskd.training.teacher_cache.writer import cache_teacher

    cache_teacher(config, output, epochs)
    return 0


def _doctor(argv: list[str]) -> int:
    config = arguments.plain(_of("doctor", "data", argv), "udskd doctor data")
    from udskd import doctor

    return doctor.data(config)


def _study(argv: list[str]) -> int:
    parser = _Parser(
        prog="udskd study uncertainty",
        description="Every weighting of udskd, cud and variance on the generated set, whose true posterior is known.",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the runs, tables and figure go (runs/study)")
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="runs of each kind (1)")
    parser.add_argument("--epochs", metavar="N", type=int, help="of each training, the teacher's too, for a quick look")
    options = parser.parse_args(_of("study", "uncertainty", argv))
    from udskd import study

    return study.uncertainty(options.output, options.seeds, options.epochs)


def _of(command: str, subject: str, argv: list[str]) -> list[str]:
    """The options of a command that so far has a single subject."""
    if argv and argv[0] in ("-h", "--help"):
        return argv
    if not argv or argv[0] != subject:
        came = f'"{argv[0]}"' if argv else "nothing"
        raise ConfigError(f'udskd {command} is of "{subject}", not of {came}: udskd {command} {subject}')
    return argv[1:]


class _Parser(argparse.ArgumentParser):
    """argparse with our way of saying what is wrong."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        options, rest = self.parse_known_args(argv)
        if rest:
            names = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f'unknown option "{rest[0]}" of {self.prog}{suggest.did_you_mean(rest[0], names)}')
        return options

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"{self.prog}: {message}")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "recipes": _recipes,
    "train": _train,
    "eval": _eval,
    "compare": _compare,
    "demo": _demo,
    "pack": _pack,
    "cache-teacher": _cache_teacher,
    "doctor": _doctor,
    "study": _study,
}

if __name__ == "__main__":
    sys.exit(main())
