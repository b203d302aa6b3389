"""The commands as a user types them: exit codes, one-line errors, and signals to a real process."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.conftest import write_tree
from udskd import __version__, training
from udskd.cli import main as cli
from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.errors import Interrupted
from udskd.results import table

RECIPE = """
method = "ce"
[data]
image_size = 8
workers = 0
[student_a]
model = "tiny_plain_2"
[student_b]
model = "tiny_separable_2"
[training]
epochs = 1
batch_size = 12
device = "cpu"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipe.toml and images/, which is also the working directory."""
    write_tree(tmp_path / "images")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    return cli.main(command.split())


@pytest.fixture
def train_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path | None, bool]]:
    """The arguments of every call of training.train, which does nothing."""
    calls: list[tuple[Config, Path | None, bool]] = []
    monkeypatch.setattr(training, "train", lambda config, resume, previous: calls.append((config, resume, previous)))
    return calls


def test_train_eval_and_resume_of_a_finished_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train recipe.toml --data.root images --output out --seed 4 --temperature 2") == 0
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert (summary["status"], summary["seed"], summary["options"]) == ("complete", 4, {"loss.temperature": 2.0})
    assert run("eval out") == 0
    assert f"student_a: top-1 {summary['student_a']['top1']:.2f} %" in capsys.readouterr().out
    assert run("train --resume out") == 0
    assert "out is complete" in capsys.readouterr().out


def test_the_run_folder_is_named_after_method_data_and_seed(folder: Path) -> None:
    assert run("train recipe.toml --data.root images --seed 2") == 0
    assert (folder / "runs" / "ce-images-seed2" / "summary.json").exists()


def test_options_may_come_before_the_recipe(folder: Path, train_calls: list[tuple[Config, Path | None, bool]]) -> None:
    assert run("train --seed 3 recipe.toml --peer_weight 0") == 0
    ((config, resume, _),) = train_calls
    assert (config.seed, config.loss.peer_weight, config.method, resume) == (3, 0.0, "ce", None)


def test_a_recipe_that_comes_with_udskd_is_taken_by_its_name(
    folder: Path, train_calls: list[tuple[Config, Path | None, bool]]
) -> None:
    assert run("train caltech20 --temperature 2") == 0
    ((config, _, _),) = train_calls
    assert (config.data.root, config.loss.temperature) == ("data/caltech-20", 2.0)


def test_resume_takes_the_options_of_the_run(folder: Path, train_calls: list[tuple[Config, Path | None, bool]]) -> None:
    config = schema.with_values(Config(), {"seed": 8, "training.epochs": 9})
    (folder / "out").mkdir()
    (folder / "out" / "config.toml").write_text(toml.dump(config))
    assert run("train --resume out --previous") == 0
    assert train_calls == [(config, Path("out"), True)]


def test_resume_auto_continues_what_was_begun_and_begins_what_was_not(
    folder: Path, train_calls: list[tuple[Config, Path | None, bool]]
) -> None:
    command = "train recipe.toml --output out --resume auto"
    assert run(command) == 0
    (folder / "out").mkdir()
    (folder / "out" / "config.toml").write_text("")
    assert run(command) == 0
    assert [resume for _, resume, _ in train_calls] == [None, Path("out")]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trian recipe.toml", ["No such command 'trian'", "Did you mean 'train'"]),
        ("train", ["give a recipe"]),
        ("train nowhere.toml", ["no recipe at nowhere.toml"]),
        ("train recipe.toml other.toml", ["other.toml"]),
        (f"train {'x' * 300}", ["there is no recipe"]),
        (f"train --resume {'x' * 300}", ["is not a run folder"]),
        ("train recipe.toml --temprature 2", ["'--temprature'", "Did you mean", "'--temperature'"]),
        ("train recipe.toml --resum out", ["Did you mean '--resume'"]),
        ("train recipe.toml --data.root nowhere", ["nowhere"]),
        ("train recipe.toml --method cee", ['"cee"']),
        ("train --resume nowhere", ["nowhere is not a run folder"]),
        ("train recipe.toml --data.root images --previous", ["--previous needs --resume RUN"]),
        ("train --resume auto", ["give a recipe"]),
        ("eval nowhere", ["nowhere is not a run folder"]),
        ("eval", ["udskd eval", "RUN"]),
        ("eval out --data.rot x", ["'--data.rot'", "Did you mean '--data.root'"]),
        ("compare", ["udskd compare", "RUN"]),
        ("pack images", ["udskd pack", "DST"]),
        ("pack images packs --quality high", ["--quality", "'high'"]),
        ("cache-teacher recipe.toml", ["--output DIR"]),
        ("cache-teacher --output x", ["udskd cache-teacher", "RECIPE"]),
        ("doctor dta", ["No such command 'dta'", "Did you mean 'data'"]),
        ("doctor data nowhere.toml", ["no recipe at nowhere.toml"]),
        ("study uncertainty --sed 1", ["Did you mean '--seeds'"]),
        ("demo --outptu x", ["Did you mean '--output'"]),
        ("pack images packs --workers 1000000000000", ["workers must be from 0 to 1024"]),
        ("pack images packs --classes -5", ["-5"]),
        ("study uncertainty --seeds -1", ["--seeds must be at least 1"]),
        ("train recipe.toml --data.root images --training.device cuda:999", ['"cuda:999"', "PyTorch sees"]),
        (f"train recipe.toml --data.root {'x/' * 3000}", ["File name too long"]),
        (f"train recipe.toml --data.root images --output {'x' * 5000}", ["File name too long"]),
        (f"eval {'x' * 5000}", ["x"]),
        (f"compare {'x' * 5000}", ["x"]),
        ("help trian", ["No such command 'trian'", "Did you mean 'train'"]),
        ("help train recipe", ["udskd train has no command 'recipe'"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    assert run(command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("udskd: error: ")
    assert all(word in err for word in words), err


@pytest.mark.parametrize("option", ["--data.root", "--output", "--teacher.checkpoint"])
def test_a_path_that_is_not_utf8_is_one_sentence_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert cli.main(["train", "recipe.toml", option, "bad\udcff"]) == 2
    assert f"{option[2:]} is 'bad\\udcff', a name that is not UTF-8" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_an_unknown_home_folder_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "recipe.toml", "--data.root", "~nosuch/x"]) == 2
    assert "~nosuch/x begins with the home of a user that does not exist" in capsys.readouterr().err


def test_pack_reports_images_in_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "tree")
    shutil.rmtree(tree / "val" / "red")
    (tree / "val" / "red").symlink_to("../train/red")
    assert cli.main(["pack", str(tree), str(tmp_path / "packs")]) == 0
    assert capsys.readouterr().out.count("train and val share 12 images (first: ") == 1


def test_control_characters_of_a_name_are_escaped_in_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "recipe.toml", "--data.root", "a\nb\x1b[31m"]) == 2
    assert "the data root a\\nb\\x1b[31m does not exist" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"udskd {__version__}\n"
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in cli.root.commands)
    assert run("") == 2
    assert capsys.readouterr() == (text, "")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("recipes", "--help"),
        ("eval", "--data.root"),
        ("compare", "--output"),
        ("demo", "--output"),
        ("pack", "--short-side"),
        ("cache-teacher", "--epochs"),
        ("doctor data", "--data.loader"),
        ("study uncertainty", "--seeds"),
        *[("train", option) for option in ("--resume", "--loss.temperature", "--teacher.checkpoint")],
    ],
)
def test_each_command_has_help(capsys: pytest.CaptureFixture[str], command: str, option: str) -> None:
    assert run(f"{command} --help") == 0
    assert option in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--training.wandb", "--weight.lr", "--xyz", "--data.zzz"])
def test_an_option_that_resembles_none_has_no_suggestion(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run(f"train recipe.toml {option} 3") == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "near"),
    [("--training.learning_rate", ""), ("--trainng.lr", "--training.lr"), ("--data.worker", "--data.workers")],
)
def test_an_option_is_suggested_where_section_and_name_are_alike(
    capsys: pytest.CaptureFixture[str], option: str, near: str
) -> None:
    assert run(f"train recipe.toml {option} 3") == 2
    assert (f"Did you mean {near!r}" if near else option) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "train", "doctor", "doctor data", "cache-teacher", "help"])
def test_help_shows_what_the_option_shows(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(f"help {command}") == 0
    shown = capsys.readouterr().out
    assert run(f"{command} --help") == 0
    assert capsys.readouterr().out == shown


def test_of_the_processes_of_torchrun_the_first_reports_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    codes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        codes.append(run("trian"))
    assert codes == [2, 0]
    assert capsys.readouterr().err.count("\n") == 1


def test_without_torchrun_each_process_reports_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("trian") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (MemoryError(), "too little memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes"),
            "too little memory",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "too little memory"),
        (RuntimeError("can't start new thread"), "starts no further thread"),
    ],
    ids=["files", "permission", "memory", "allocator", "import", "threads"],
)
def test_a_limit_of_the_system_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    def fail(runs: list[Path], output: Path | None) -> int:
        raise error

    monkeypatch.setattr(table, "compare", fail)
    assert run("compare out") == 2
    err = capsys.readouterr().err
    assert err.startswith("udskd: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_another_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runs: list[Path], output: Path | None) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(table, "compare", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("compare out")


def test_training_goes_on_without_its_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("train recipe.toml --data.root images --output out") == 0
    assert (folder / "out" / "summary.json").exists()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the work goes on without it" in err


def test_compare_writes_its_files_where_its_output_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train recipe.toml --data.root images --output out") == 0
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("compare out --output compared") == 2
    assert sorted(path.name for path in (folder / "compared").iterdir()) == [
        *("accuracy.png", "calibration.png", "curves.png", "table.md"),
    ]
    assert "the output cannot be written: No space left" in capsys.readouterr().err


def test_help_and_errors_of_the_command_line_need_no_pytorch() -> None:
    program = "import sys; from udskd.cli import main; main.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for command in ("--help", "recipes", "train --help", "train --sed 1"):
        subprocess.run([sys.executable, "-c", program, *command.split()], env=environment, check=True)


def test_a_reader_that_ends_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "udskd.cli.main", "recipes"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_on_a_full_disk_is_one_sentence(unbuffered: str) -> None:
    command = [sys.executable, "-m", "udskd.cli.main", "recipes"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "udskd: error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, sentence)


def test_a_closed_output_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m udskd.cli.main recipes >&-"
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, shell=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("error", [Interrupted("stopped; nothing saved"), KeyboardInterrupt()])
def test_an_interruption_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def interrupted(runs: list[Path], output: Path | None) -> int:
        raise error

    monkeypatch.setattr(table, "compare", interrupted)
    assert run("compare out") == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow_for(cases=lambda number: number != signal.SIGINT)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_ends_in_one_line_and_a_run_that_continues(
    folder: Path, number: signal.Signals, train_calls: list[tuple[Config, Path | None, bool]]
) -> None:
    """As from a terminal: the workers that decode images receive the signal, too."""
    (folder / "recipe.toml").write_text(
        RECIPE.replace("workers = 0", "workers = 2").replace("epochs = 1", "epochs = 2000")
    )
    command = [
        sys.executable,
        "-m",
        "udskd.cli.main",
        "train",
        "recipe.toml",
        "--data.root",
        "images",
        "--output",
        "out",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "out" / "checkpoints" / "students.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("udskd: stopped; ")
    assert re.search(r"of 2000 epochs of the students( and \d of 3 steps of the next)? saved; continue with: ", last)
    assert last.endswith("saved; continue with: udskd train --resume out")
    assert not (folder / "out" / "summary.json").exists()
    assert run("train --resume out") == 0
    assert train_calls[0][1] == Path("out")


@pytest.mark.parametrize(("command", "subject"), [("doctor", "data"), ("study", "uncertainty")])
def test_a_command_with_commands_of_its_own_lists_them(
    command: str, subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command]) == 2
    text = capsys.readouterr().out
    assert subject in text
    assert cli.main([command, "--help"]) == 0
    assert capsys.readouterr().out == text


def test_the_error_of_a_networks_own_code_is_printed_below_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "nets_of_the_command.py").write_text("def net(num_classes, depth):\n    return 1 // depth\n")
    options = ["--data.root", "images", "--student_a.model", "nets_of_the_command:net"]
    assert cli.main(["train", "recipe.toml", *options, "--student_a.options", "{depth = 0}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith('udskd: error: model "nets_of_the_command:net" cannot be built')
    assert lines[0].endswith(
        f"ZeroDivisionError: integer division or modulo by zero in {folder}/nets_of_the_command.py, line 2"
    )
    assert "    return 1 // depth" in lines
    assert lines[-1] == "ZeroDivisionError: integer division or modulo by zero"


def test_the_options_of_a_network_are_an_inline_table(
    folder: Path, train_calls: list[tuple[Config, Path | None, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "recipe.toml", "--student_a.options", '{width = 8, act = "relu"}']) == 0
    assert train_calls[0][0].student_a.options == {"width": 8, "act": "relu"}
    for text in ("width = 8", "{width = }", "[8]", "{day = 2020-01-01}"):
        assert cli.main(["train", "recipe.toml", "--student_a.options", text]) == 2
        assert "student_a.options" in capsys.readouterr().err
