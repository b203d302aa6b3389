"""`udskd demo`: one teacher, and students of three methods, on generated images whose true uncertainty is known."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from udskd.config import toml
from udskd.config.schema import Config
from udskd.data import EmbeddedSet, EvalLoader, normalize_batch
from udskd.demo.figure import TeacherUncertainty, draw
from udskd.errors import printable
from udskd.loss.uncertainty import certainty
from udskd.models.loading import load_network
from udskd.progress import Display
from udskd.results import table as report
from udskd.results.runs import group_runs, read_runs
from udskd.training import train

RECIPE = Path(__file__).with_name("demo.toml")
METHODS = {
    "kd": "a teacher, then two students that imitate it, each on its own",
    "ce": "the same students from the labels alone",
    "udskd": "students that imitate the teacher where it is sure, and each other",
}


def main(output: Path | None = None) -> int:
    """Train a teacher and the students of ce, kd and udskd; print a table and draw a figure.

    Args:
        output: folder of the runs and the figure, runs/demo by default. Runs that it holds already are continued.

    Returns:
        0, the exit code.
    """
    folder = output or Path("runs/demo")
    config, val, display = toml.load(RECIPE), EmbeddedSet("val"), Display()
    best = 100 * float((val.posterior.argmax(axis=1) == val.labels).mean())
    display.line(
        f"Generated images, {len(val.classes)} overlapping classes: knowing p(class | image) gives {best:.1f} % top-1."
    )
    for step, (method, description) in enumerate(METHODS.items(), 1):
        display.line("")
        display.line(f"[{step}/{len(METHODS)}] {method}: {description}")
        run(config, folder, method)

    groups = group_runs(read_runs([folder / method for method in ("ce", "kd", "udskd")]))
    teacher = teacher_uncertainty(folder / "kd" / "teacher.safetensors", config, val)
    draw(groups, teacher, best, folder / "demo.png")  # before the table, which may have no output to go to
    print()
    report.show(report.table(groups))
    print(f"\nBest possible top-1 on these labels: {best:.2f} %.")
    print(
        "KL truth: mean KL(true p || predicted p). H corr.: rank correlation of the predicted and the true entropies."
    )
    print(printable(f"figure: {folder / 'demo.png'}"))
    return 0


def run(config: Config, folder: Path, method: str) -> None:
    """Train the students of one method; all methods use the teacher that the run of kd trains."""
    path, shared = folder / method, str(folder / "kd" / "teacher.safetensors")
    teacher = config.teacher if method == "kd" else replace(config.teacher, checkpoint=shared)
    started = (path / "config.toml").exists()
    train(replace(config, method=method, teacher=teacher, output=str(path)), resume=path if started else None)


def teacher_uncertainty(weights: Path, config: Config, images: EmbeddedSet) -> TeacherUncertainty:
    """The true entropy of every validation image, and the weight that the teacher's certainty gives it."""
    return TeacherUncertainty(images, images.entropy, certainty(logits_of(weights, config, images)).numpy())


@torch.no_grad()
def logits_of(weights: Path, config: Config, images: EmbeddedSet) -> Tensor:
    """A network's logits of every image, computed in float32 on the CPU: float64 [N, C]."""
    network = load_network(weights, None, images.classes, config.data).module.eval()
    with closing(EvalLoader(images, config.data, batch_size=config.training.batch_size)) as loader:
        pixels = (normalize_batch(batch, config.data, "cpu", len(images.classes))[0] for batch in loader)
        return torch.cat([network(batch) for batch in pixels]).double()
