"""Several processes that train one run together, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import tiny_config, write_tree
from tests.training.helpers.kills import compare, outcome
from tests.training.helpers.parallel import TIMEOUT, Ended, ForkServer, survivors, torchrun
from udskd.config import schema, toml
from udskd.data import augment, open_sets
from udskd.models.checkpoints import load_weights
from udskd.training import train

RUN = Path("run")
BASE = {  # batch-norm, dropout, averages, mixup, saved after every step
    "student_b.model": "squeezenet1_1",
    "data.mixup": 0.2,
    "teacher.epochs": 1,
    "training.epochs": 2,
    "training.save_every": 1e-9,
}


def place(folder: Path, tree: Path, **values: Any) -> Path:
    """A folder with recipe.toml in it."""
    folder.mkdir(exist_ok=True)
    options = {name.replace("__", "."): value for name, value in values.items()}
    config = schema.with_values(tiny_config(tree, RUN), {**BASE, **options})
    (folder / "recipe.toml").write_text(toml.dump(config))
    return folder


@pytest.fixture(scope="module")
def straight(
    fork_server: ForkServer, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, Ended]]:
    """Undisturbed runs of two and of three processes."""
    runs = {}
    for ranks in (2, 3):
        here = place(tmp_path_factory.mktemp(f"straight{ranks}"), tree)
        ended = fork_server.run(ranks, "train recipe.toml", here)
        assert ended.codes == [0] * ranks, ended.err
        runs[ranks] = here / RUN, ended
    return runs


def different(one: Path, other: Path) -> list[str]:
    """The names that differ, without the previous train state: it depends on when the processes agreed to save."""
    return [name for name in compare(outcome(one), outcome(other)) if ".previous.pt" not in name]


def sentences(ended: Ended) -> list[str]:
    """The lines that all processes together write to stderr."""
    return [line for text in ended.err for line in text.splitlines() if line]


# --- files and output ----------------------------------------------------------------------------------------------


def test_only_the_first_process_writes_and_speaks(straight: dict[int, tuple[Path, Ended]]) -> None:
    run, ended = straight[3]
    assert ended.out[1:] == ["", ""]
    assert ended.err == [""] * 3
    assert max(Counter(ended.out[0].splitlines()).values()) == 1
    assert "processes: 3, 4 images each" in ended.out[0]
    log = Counter((e["event"], e.get("epoch")) for e in map(json.loads, (run / "log.jsonl").read_text().splitlines()))
    assert log == Counter(
        [("start", None), ("teacher_epoch", 1), ("teacher", None), ("epoch", 1), ("epoch", 2), ("end", None)]
    )
    assert not list(run.rglob("*.tmp"))


def test_the_images_of_an_epoch_are_counted_over_all_processes(straight: dict[int, tuple[Path, Ended]]) -> None:
    for run, _ in straight.values():
        events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [e["images"] for e in events if e["event"] == "epoch"] == [36, 36]


# --- the same numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [12, 5])
def test_any_number_of_processes_evaluates_to_the_same_bits(
    fork_server: ForkServer, straight: dict[int, tuple[Path, Ended]], tmp_path: Path, batch_size: int
) -> None:
    """18 images: of 2 batches, which leave the third process none, or 4, of which no two processes have as many."""
    shutil.copytree(straight[2][0], tmp_path / RUN)
    config = toml.load(tmp_path / RUN / "config.toml")
    config = schema.with_values(config, {"training.batch_size": batch_size})
    (tmp_path / RUN / "config.toml").write_text(toml.dump(config))
    results = []
    for ranks in (1, 2, 3):
        ended = fork_server.run(ranks, "bits run", tmp_path)
        assert ended.codes == [0] * ranks, ended.err
        results += [(tmp_path / f"result{rank}.json").read_text() for rank in range(ranks)]
    assert len(set(results)) == 1
    summary = json.loads((straight[2][0] / "summary.json").read_text())
    if batch_size == 12:
        for role, metrics in json.loads(results[0]).items():
            assert metrics == {k: summary[role][k] for k in metrics}


def test_eval_prints_the_same_lines_for_any_number_of_processes(
    fork_server: ForkServer, straight: dict[int, tuple[Path, Ended]], tmp_path: Path
) -> None:
    shutil.copytree(straight[2][0], tmp_path / RUN)
    texts = ["".join(fork_server.run(ranks, "eval run", tmp_path).out) for ranks in (1, 2, 3)]
    assert texts[0].count("top-1") == 3
    assert texts[0] == texts[1] == texts[2]


@pytest.fixture(scope="module")
def alike(fork_server: ForkServer, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Runs of networks without batch-norm, by (processes, parts), each with the recorded inputs of its networks."""
    runs = {}
    for ranks, parts in ((1, 1), (1, 2), (2, 1), (2, 3)):
        here = place(
            tmp_path_factory.mktemp("alike"),
            tree,
            method="dml",
            student_a__model="squeezenet1_1",
            training__accumulate=parts,
        )
        ended = fork_server.run(ranks, "train recipe.toml", here, "record")
        assert ended.codes == [0] * ranks, ended.err
        runs[ranks, parts] = here
    return runs


def seen(here: Path, ranks: int, parts: int) -> list[np.ndarray[Any, Any]]:
    """Images and targets of each step, assembled from the pieces: by part, then by rank."""
    pieces = [list(np.load(here / f"seen{rank}.npz").values()) for rank in range(ranks)]
    steps = len(pieces[0]) // (2 * parts)
    return [
        np.concatenate([pieces[r][2 * (step * parts + part) + kind] for part in range(parts) for r in range(ranks)])
        for step in range(steps)
        for kind in (0, 1)
    ]


@pytest.mark.parametrize(("ranks", "parts"), [(1, 2), (2, 1), (2, 3)])
def test_processes_and_parts_see_the_pixels_that_one_process_sees(
    alike: dict[tuple[int, int], Path], ranks: int, parts: int
) -> None:
    whole, cut = seen(alike[1, 1], 1, 1), seen(alike[ranks, parts], ranks, parts)
    assert len(whole) == len(cut) == 2 * 2 * 3  # images and targets, epochs, steps
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize(("ranks", "parts"), [(1, 2), (2, 1), (2, 3)])
def test_processes_and_parts_train_the_weights_that_one_process_trains(
    alike: dict[tuple[int, int], Path], ranks: int, parts: int
) -> None:
    for role in ("student_a", "student_b"):
        one, other = (load_weights(alike[k] / RUN / f"{role}.safetensors")[0] for k in ((1, 1), (ranks, parts)))
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-3, atol=1e-5, err_msg=name)


# --- images that cannot be read ------------------------------------------------------------------------------------


def broken_tree(folder: Path) -> Path:
    """A tree in which all images of process 1 of 2 in the first step are unreadable."""
    tree = write_tree(folder)
    train, _ = open_sets(tiny_config(tree, RUN).data)
    for index in augment.permutation(0, 0, len(train))[6:12]:
        Path(train.name(int(index))).write_bytes(b"not an image")
    return tree


def test_a_process_without_any_readable_image_does_not_stop_the_others(fork_server: ForkServer, tmp_path: Path) -> None:
    tree = broken_tree(tmp_path / "tree")
    here = place(tmp_path / "here", tree, method="ce", data__mixup=0.0, data__max_unreadable=0.5)
    ended = fork_server.run(2, "train recipe.toml", here)
    assert ended.codes == [0, 0], ended.err
    events = [json.loads(line) for line in (here / RUN / "log.jsonl").read_text().splitlines()]
    names = [e["name"] for e in events if e["event"] == "unreadable"]
    assert len(names) == len(set(names)) == 6
    assert json.loads((here / RUN / "summary.json").read_text())["unreadable"] == 6
    lines = [line for text in ended.out for line in text.splitlines() if line.startswith("skipping an image")]
    assert len(lines) == 6
    assert [e["images"] for e in events if e["event"] == "epoch"] == [30, 30]


def test_too_many_unreadable_images_of_one_process_are_its_sentence_and_everybodys_end(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    tree = broken_tree(tmp_path / "tree")
    ended = fork_server.run(
        2, "train recipe.toml", place(tmp_path / "here", tree, method="ce", data__max_unreadable=0.1)
    )
    assert ended.codes == [1, 2]
    assert len(sentences(ended)) == 1
    assert "data.max_unreadable" in sentences(ended)[0]


def swap(root: Path) -> None:
    """Exchange the images of two classes, whose files have the same names."""
    for one, other in (("red", "kept"), ("blue", "red"), ("kept", "blue")):
        (root / "train" / one).rename(root / "train" / other)


COPIES = {
    "contents": (swap, "other contents of the train images"),
    "count": (lambda root: (root / "val" / "red" / "0.png").unlink(), "17 val images instead of 18"),
    "classes": (
        lambda root: [(root / split / "red").rename(root / split / "rose") for split in ("train", "val")],
        "other names of the classes",
    ),
    "names": (
        lambda root: (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "x.png"),
        "other names or labels of the train images",
    ),
}


@pytest.mark.parametrize(("change", "words"), COPIES.values(), ids=COPIES)
def test_machines_with_different_images_are_refused_in_one_sentence(
    fork_server: ForkServer, tree: Path, tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    for rank in range(2):
        here = place(tmp_path / f"machine{rank}", Path("tree"), method="ce")
        shutil.copytree(tree, here / "tree")
    change(tmp_path / "machine1" / "tree")
    ended = fork_server.run(2, "train recipe.toml", tmp_path, "machine")
    assert ended.codes == [2, 1], ended.err
    advice = "give every process the same images"
    sentence = f"process 1 does not find the images of process 0 in tree: it has {words}; {advice}"
    assert sentences(ended) == [f"udskd: error: {sentence}"]
    assert not (tmp_path / "machine0" / RUN).exists()


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train recipe.toml --trainin.lr 3", "No such option '--trainin.lr'"),
        ("train recipe.toml --method cee", 'unknown method "cee"'),
        ("train recipe.toml --data.root nowhere", "nowhere"),
        ("train recipe.toml --training.batch_size 13", "13 images in a step cannot be cut into 2 equal pieces"),
        ("train recipe.toml --training.accumulate 4", "12 images in a step cannot be cut into 8 equal pieces"),
        ("train recipe.toml --training.lr 1e30", "the loss of teacher epoch 1 is nan"),
        ("eval nowhere", "nowhere is not a run folder"),
    ],
)
def test_a_mistake_that_all_processes_find_is_told_once(
    fork_server: ForkServer, tree: Path, tmp_path: Path, command: str, words: str
) -> None:
    ended = fork_server.run(2, command, place(tmp_path, tree))
    before_they_join = [0, 2], [-signal.SIGTERM, 2]
    assert sorted(ended.codes) in ([1, 2], *before_they_join), ended.err
    assert len(sentences(ended)) == 1
    assert sentences(ended)[0].startswith("udskd: error: ")
    assert words in sentences(ended)[0]


def test_a_mistake_that_one_process_finds_is_told_by_it(fork_server: ForkServer, tree: Path, tmp_path: Path) -> None:
    ended = fork_server.run(2, "train recipe.toml", place(tmp_path, tree), "no_teacher")
    assert ended.codes == [1, 2]
    assert ended.err == ["", "udskd: error: teacher.pt cannot be read: Stale file handle\n"]
    assert not (tmp_path / RUN).exists()


def test_other_images_are_refused_by_the_first_process_alone(fork_server: ForkServer, tmp_path: Path) -> None:
    here = place(tmp_path, write_tree(tmp_path / "tree"), method="ce", training__epochs=1)
    assert fork_server.run(2, "train recipe.toml", here).codes == [0, 0]
    (here / RUN / "summary.json").unlink()
    (tmp_path / "tree" / "val" / "red" / "0.png").unlink()
    ended = fork_server.run(2, "train --resume run", here)
    assert ended.codes == [2, 1]
    assert len(sentences(ended)) == 1
    assert "run was started with other images than" in ended.err[0]
    assert "1 removed (val/red/0.png)" in ended.err[0]


def test_a_bug_in_one_process_shows_its_traceback_and_ends_all(
    fork_server: ForkServer, tree: Path, tmp_path: Path
) -> None:
    ended = fork_server.run(2, "train recipe.toml", place(tmp_path, tree), "crash")
    assert ended.codes == [1, 70]
    assert ended.err[0] == ""
    assert ended.err[1].count("Traceback") == 1
    assert ended.err[1].endswith("ZeroDivisionError: a bug\n")


def test_a_full_disk_is_told_once_and_the_run_continues_exactly(
    fork_server: ForkServer, tree: Path, straight: dict[int, tuple[Path, Ended]], tmp_path: Path
) -> None:
    ended = fork_server.run(2, "train recipe.toml", place(tmp_path, tree), "full")
    assert ended.codes == [2, 1]
    assert len(sentences(ended)) == 1
    assert "No space left on device; the previous one is intact; correct that, then run: " in sentences(ended)[0]
    assert fork_server.run(2, "train --resume run", tmp_path).codes == [0, 0]
    assert different(tmp_path / RUN, straight[2][0]) == []


# --- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.slow_for(cases=lambda ranks: ranks == 3)
@pytest.mark.parametrize("ranks", [2, 3])
def test_when_one_process_is_told_to_stop_all_stop_after_the_same_step_and_continue_exactly(
    fork_server: ForkServer, tree: Path, straight: dict[int, tuple[Path, Ended]], tmp_path: Path, ranks: int
) -> None:
    """With three, the sums of the gradients depend on how DDP sorts them."""
    place(tmp_path, tree)
    ended = fork_server.run(ranks, "train recipe.toml", tmp_path, "stop")
    assert ended.codes == [130] * ranks
    saved = "1 of 2 epochs of the students and 2 of 3 steps of the next saved"
    assert sentences(ended) == [f"udskd: stopped; {saved}; continue with: udskd train --resume run"]
    assert fork_server.run(ranks, "train --resume run", tmp_path).codes == [0] * ranks
    assert different(tmp_path / RUN, straight[ranks][0]) == []


@pytest.mark.slow_for(cases=lambda ranks: ranks == 3)
@pytest.mark.parametrize("ranks", [2, 3])
def test_when_one_process_is_killed_the_others_end_and_the_run_continues_exactly(
    fork_server: ForkServer, tree: Path, straight: dict[int, tuple[Path, Ended]], tmp_path: Path, ranks: int
) -> None:
    place(tmp_path, tree)
    ended = fork_server.run(ranks, "train recipe.toml", tmp_path, "die")
    assert sorted(ended.codes) == [-signal.SIGKILL] + [1] * (ranks - 1), ended.err
    assert sentences(ended) == []
    assert fork_server.run(ranks, "train --resume run", tmp_path).codes == [0] * ranks
    assert different(tmp_path / RUN, straight[ranks][0]) == []


@pytest.mark.slow_for(cases=lambda ranks: ranks == 3)
@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_processes_may_continue_and_says_so(
    fork_server: ForkServer, tree: Path, tmp_path: Path, ranks: int
) -> None:
    place(tmp_path, tree)
    assert fork_server.run(2, "train recipe.toml", tmp_path, "stop").codes == [130, 130]
    ended = fork_server.run(ranks, "train --resume run", tmp_path)
    assert ended.codes == [0] * ranks, ended.err
    assert f"processes: 2 before, {ranks} from here on" in ended.out[0]
    events = [json.loads(line) for line in (tmp_path / RUN / "log.jsonl").read_text().splitlines()]
    assert [e["images"] for e in events if e["event"] == "epoch"] == [36, 36]


# --- under torchrun ------------------------------------------------------------------------------------------------


def finish(world: subprocess.Popen[str], folder: Path) -> tuple[str, str]:
    """Its stdout and stderr, once it has ended with all its processes."""
    try:
        out, err = world.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(world.pid, signal.SIGKILL)
        raise
    assert survivors(folder) == []
    return out, err


def test_torchrun_shows_our_sentence_and_leaves_no_process(tree: Path, tmp_path: Path) -> None:
    place(tmp_path, tree)
    world = torchrun(2, "train recipe.toml --training.batch_size 13", tmp_path)
    out, err = finish(world, tmp_path)
    assert world.returncode != 0
    assert (out + err).count("udskd: error: 13 images in a step cannot be cut into 2 equal pieces") == 1
    root_cause = err[err.index("Root Cause") :]
    assert "exitcode  : 2 " in root_cause, err


@pytest.mark.slow_for(cases=lambda whole_group: whole_group)
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_to_torchrun_saves_and_the_run_continues_exactly(
    fork_server: ForkServer, tree: Path, straight: dict[int, tuple[Path, Ended]], tmp_path: Path, whole_group: bool
) -> None:
    """SIGTERM as a batch system sends it; or SIGINT as a terminal does, to all, and once more from torchrun."""
    place(tmp_path, tree)
    world = torchrun(2, "train recipe.toml --data.loader processes --data.workers 1", tmp_path, "linger")
    deadline = time.monotonic() + TIMEOUT
    while not all((tmp_path / f"waiting{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if whole_group:
        os.killpg(world.pid, signal.SIGINT)
    else:
        world.terminate()
    _, err = finish(world, tmp_path)
    assert world.returncode != 0
    assert err.count("udskd: ") == 1, err
    assert "steps of the next saved; continue with: udskd train --resume run" in err
    command = "train --resume run --data.workers 0 --data.loader auto"
    assert fork_server.run(2, command, tmp_path).codes == [0, 0]
    (tmp_path / RUN / "config.toml").write_text((straight[2][0] / "config.toml").read_text())  # the loader is another
    assert different(tmp_path / RUN, straight[2][0]) == []


@pytest.mark.slow
def test_torchrun_starts_a_run_again_of_which_a_process_was_killed(
    tree: Path, straight: dict[int, tuple[Path, Ended]], tmp_path: Path
) -> None:
    place(tmp_path, tree)
    world = torchrun(2, "train recipe.toml", tmp_path, "die", "--max-restarts", "1")
    out, err = finish(world, tmp_path)
    assert world.returncode == 0, err
    assert out.count("continuing after 1 of 2 epochs of the students\n") == 1
    assert different(tmp_path / RUN, straight[2][0]) == []


# --- a faulty teacher ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with many validation images, and two teachers of it: classes in another order, and too large weights."""
    folder = tmp_path_factory.mktemp("odd")
    tree = write_tree(folder / "tree", val=40)
    values = {"method": "kd", "training.epochs": 1, "teacher.epochs": 15}
    train(schema.with_values(tiny_config(tree, folder / "good"), values))
    tensors = load_weights(folder / "good" / "teacher.safetensors")[0]
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier")}
    torch.save({**tensors, **{name: tensor[[2, 0, 1]] for name, tensor in head.items()}}, folder / "moved.pth")
    large = (tensors["classifier.weight"] * 1e38).clamp(-3e38, 3e38)
    torch.save({**tensors, "classifier.weight": large}, folder / "large.pth")
    return folder


def test_any_number_of_processes_warns_of_a_teacher_once_and_alike(
    fork_server: ForkServer, odd_teachers: Path, tmp_path: Path
) -> None:
    found = []
    for ranks in (1, 2, 3):
        file = str(odd_teachers / "moved.pth")
        here = place(tmp_path / str(ranks), odd_teachers / "tree", teacher__checkpoint=file, training__epochs=1)
        ended = fork_server.run(ranks, "train recipe.toml", here)
        assert ended.codes == [0] * ranks, ended.err
        assert ended.out[1:] == [""] * (ranks - 1)
        lines = [line for line in ended.out[0].splitlines() if "warning about" in line]
        log = [json.loads(line) for line in (here / RUN / "log.jsonl").read_text().splitlines()]
        events = [(e["cause"], e["text"]) for e in log if e["event"] == "teacher_warning"]
        found.append((lines, events))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == len(found[0][1]) == 1
    assert "3 of 3 classes" in found[0][0][0]


@pytest.mark.slow_for(cases=lambda ranks: ranks == 3)
@pytest.mark.parametrize("ranks", [2, 3])
def test_answers_that_are_not_finite_are_refused_once(
    fork_server: ForkServer, odd_teachers: Path, tmp_path: Path, ranks: int
) -> None:
    here = place(tmp_path, odd_teachers / "tree", teacher__checkpoint=str(odd_teachers / "large.pth"))
    ended = fork_server.run(ranks, "train recipe.toml", here)
    assert all(ended.codes), ended.codes
    (sentence,) = sentences(ended)
    assert "large.pth gives logits that are NaN or infinite" in sentence
