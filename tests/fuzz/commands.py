"""Hostile command lines of every command, in a folder whose files may be damaged, with hostile standard outputs.

A command ends with an exit code that is documented, and reports a mistake in one sentence. No temporary file stays, and
a folder of a run that is begun can be continued.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random

from tests.fuzz import children, files, workspace
from tests.fuzz.case import Case
from udskd.cli.main import main
from udskd.config import schema
from udskd.config.schema import Config

SECONDS = 20.0
MEMORY = 3 * 2**30
CODES = {0: "success", 2: "a mistake", 130: "interrupted", 141: "a closed pipe"}
GOOD: tuple[list[str], ...] = (
    *(["train", "recipe.toml"], ["train", "recipe.toml", "--data.root", "packs"], ["train", "--resume", "begun"]),
    *(["train", "--resume", "begun", "--previous"], ["train", "recipe.toml", "--output", "begun", "--resume", "auto"]),
    ["train", "recipe.toml", "--teacher.checkpoint", "weights/old.pth"],
    [
        "train",
        "recipe.toml",
        "--method",
        "kd",
        "--teacher.checkpoint",
        "run/teacher.safetensors",
        "--teacher.cache",
        "cache",
    ],
    *(
        ["eval", "run"],
        ["eval", "run", "--data.root", "packs"],
        ["compare", "run"],
        ["compare", "run", "--output", "o"],
    ),
    *(
        ["pack", "tree", "new"],
        ["pack", "tree", "new", "--short-side", "9", "--quality", "50"],
        ["recipes"],
        ["--version"],
    ),
    [
        "cache-teacher",
        "recipe.toml",
        "--teacher.checkpoint",
        "run/teacher.safetensors",
        "--output",
        "new",
        "--epochs",
        "1",
    ],
    ["doctor", "data", "recipe.toml"],
    *(["help"], ["train", "--help"], ["study", "uncertainty", "--help"], ["demo", "--help"], []),
)
OPTIONS = tuple(f"--{name}" for name in schema.flatten(Config()))
NUMBERS: tuple[str, ...] = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "0.5",
        "-0.0",
        "1e400",
        "1e-400",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_0",
        "1.0.0",
        "٣",
    ),
    *("1000000000000", str(2**31), str(2**63), str(-(2**63) - 1), "1" + "0" * 400, "9" * 5_000),
)
NAMES: tuple[str, ...] = (
    *("", " ", ".", "..", "run", "begun", "tree", "packs", "cache", "weights/zip.pt", "recipe.toml", "run/log.jsonl"),
    *(
        "images/image.png",
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        "/proc/nothing",
        "~nobody-is-this",
        "no",
        "no/no",
    ),
    *("x" * 300, "x" * 5_000, "a/" * 2_500, "caf\xe9", "\udcff", "a\nb", "\x1b[31m", "\x7f", "[bold]", "[/]", "%s{}"),
    *("-", "--"),
)
WORDS: tuple[str, ...] = (
    *("None", "true", "False", "auto", "cpu", "cuda", "cuda:99999999999999999999", "meta", "none", "-h", "kd", "udskd"),
    *("resnet18", "tiny_plain_2", "tiny_plain_0", "tiny_plain_99999999999", "small", "embedded", "fp16", "1 2"),
    *("0.1,0.2", "entropy", "average+context"),
)
OUTPUTS = ("file", "/dev/full", "closed", "ended pipe")


class Commands:
    def draw(self, random: Random) -> Case:
        case: Case = _draw_damaged(random) if random.random() < 0.5 else {"argv": list(random.choice(GOOD))}
        for _ in range(random.choice((0, 0, 1) if "damage" in case else (1, 1, 1, 2, 3))):
            case["argv"] = _mutated(case["argv"], random)
        if random.random() < 0.1:
            case["output"] = random.choice(OUTPUTS)
        return case

    def findings(self, cases: list[Case]) -> list[str | None]:
        workspace.template()
        return [_run(case) for case in cases]

    def smaller(self, case: Case) -> Iterable[Case]:
        """Without the damage, another output, or an argument."""
        for name in ("damage", "output"):
            if name in case:
                yield {key: value for key, value in case.items() if key != name}
        for place in range(1, len(case["argv"])):
            yield {**case, "argv": case["argv"][:place] + case["argv"][place + 1 :]}


def _draw_damaged(random: Random) -> Case:
    """A good command, and a damaged file in a folder that it names."""
    argv = random.choice([argv for argv in GOOD if _roots(argv)])
    root = random.choice(sorted(_roots(argv)))
    place = workspace.template() / root
    found = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    file = str(random.choice(found).relative_to(workspace.template()))
    return {"argv": list(argv), "damage": {"file": file, **files.draw_damage(file, random)}}


def _roots(argv: list[str]) -> set[str]:
    """The files and folders of the workspace that arguments name, and the images of the recipe."""
    roots = {argument.partition("/")[0] for argument in argv} & set(os.listdir(workspace.template()))
    return roots | ({"tree"} if "recipe.toml" in roots else set())


def _mutated(argv: list[str], random: Random) -> list[str]:
    """The arguments with one replaced, missing, repeated, or one more."""
    place, how = random.randrange(len(argv) + 1), random.random()
    if how < 0.55 or not argv:
        option = random.choice(OPTIONS)
        option = option[: random.randrange(2, len(option))] if random.random() < 0.1 else option
        value = [_value(random)] if random.random() < 0.95 else []
        return [*argv, f"{option}={value[0]}"] if value and random.random() < 0.3 else [*argv, option, *value]
    place = min(place, len(argv) - 1)
    if how < 0.8:
        return [*argv[:place], _value(random), *argv[place + 1 :]]
    return argv[:place] + argv[place + 1 :] if how < 0.9 else [*argv[:place], argv[place], *argv[place:]]


def _value(random: Random) -> str:
    return random.choice(random.choice((NUMBERS, NAMES, WORDS)))


def _run(case: Case) -> str | None:
    with workspace.copy() as folder, tempfile.TemporaryDirectory() as streams:
        if damage := case.get("damage"):
            files.place(damage, folder / damage["file"])
        before = _files(folder)
        command = partial(_main, case["argv"], case.get("output", "file"))
        ended = children.program(command, folder, Path(streams), SECONDS, MEMORY)
        if ended is None:
            return "no end within 30 seconds after SIGINT"
        new = _files(folder) - before
        left = [name for name in new if name.endswith(".tmp") or ".pack." in name or _is_half_a_run(folder, name)]
        return _wrong_end(ended) or (f"leaves {', '.join(left)}" if left else None)


def _main(argv: list[str], output: str) -> int:
    """In the child: the command, whose standard output is a file, a full disk, closed, or a pipe without a reader, as
    Python starts with it."""
    if output == "closed":
        os.close(1)
        sys.stdout = None
    elif output != "file":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing if output == "ended pipe" else os.open(output, os.O_WRONLY), 1)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    return main(argv)


def _is_half_a_run(folder: Path, name: str) -> bool:
    path = folder / name
    return path.name == "environment.json" and not (path.parent / "config.toml").exists()


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _wrong_end(ended: children.Ended) -> str | None:
    errors = ended.errors
    if "Traceback" in errors and not ended.interrupted:  # which Python prints where it ignores KeyboardInterrupt
        return errors[-children.LONGEST :]
    if ended.status not in CODES:
        return f"ends with {ended.status}: {errors[-children.LONGEST :]}"
    lines = errors.splitlines()
    if ended.status in (2, 130) and not (lines and lines[-1].startswith(("udskd: ", "Error: "))) and not ended.output:
        return f"ends with {ended.status} ({CODES[ended.status]}) without a sentence: {errors[-children.LONGEST :]}"
    strange = [line for line in lines if not ended.interrupted and not line.startswith(("udskd: ", "Usage: "))]
    return f"prints {strange[0]!r}" if strange else None
