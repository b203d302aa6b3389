"""`udskd demo`: one teacher and the ladder of methods, on generated images whose true uncertainty is known."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from udskd.config import toml
from udskd.config.schema import Config
from udskd.data import EmbeddedSet, EvalLoader, normalize_batch
from udskd.demo.figure import Uncertainty, draw
from udskd.loss.uncertainty import certainty
from udskd.models.loading import load_network
from udskd.results import table as report
from udskd.results.runs import group_runs, read_runs
from udskd.training import train

RECIPE = Path(__file__).with_name("demo.toml")
LADDER = {
    "kd": "a teacher, then two students that imitate it, each on its own",
    "ce": "the same students from the labels alone",
    "udskd": "students that imitate the teacher where it is sure, and each other",
}


def main(output: Path | None = None) -> int:
    """Trains a teacher and the students of ce, kd and udskd; prints a table, and draws a picture.

    Args:
        output: folder of the runs and the picture, runs/demo by default. Runs that it holds already are continued.

    Returns:
        0, the exit code.
    """
    folder = output or Path("runs/demo")
    config, val = toml.load(RECIPE), EmbeddedSet("val")
    best = 100 * float((val.posterior.argmax(axis=1) == val.labels).mean())
    print(
        f"Generated images, {len(val.classes)} overlapping classes: knowing p(class | image) gives {best:.1f} % top-1."
    )
    for step, (method, what) in enumerate(LADDER.items(), 1):
        print(f"\n[{step}/{len(LADDER)}] {method}: {what}", flush=True)
        run(config, folder, method)

    groups = group_runs(read_runs([folder / method for method in ("ce", "kd", "udskd")]))
    teacher = teacher_uncertainty(folder / "kd" / "teacher.safetensors", config, val)
    print()
    report.show(report.table(groups))
    print(f"\nBest possible top-1 on these labels: {best:.2f} %.")
    print(
        "KL truth: mean KL(true p || predicted p). H corr.: rank correlation of the predicted and the true entropies."
    )
    draw(groups, teacher, best, folder / "demo.png")
    print(f"picture: {folder / 'demo.png'}")
    return 0


def run(config: Config, folder: Path, method: str) -> None:
    """One rung of the ladder; the teacher that kd trains is everybody's."""
    path, shared = folder / method, str(folder / "kd" / "teacher.safetensors")
    teacher = config.teacher if method == "kd" else replace(config.teacher, checkpoint=shared)
    started = (path / "config.toml").exists()
    train(replace(config, method=method, teacher=teacher, output=str(path)), resume=path if started else None)


def teacher_uncertainty(weights: Path, config: Config, images: EmbeddedSet) -> Uncertainty:
    """What the teacher makes of every validation image, beside the truth."""
    return Uncertainty(images, images.entropy, certainty(logits_of(weights, config, images)).numpy())


@torch.no_grad()
def logits_of(weights: Path, config: Config, images: EmbeddedSet) -> Tensor:
    """What a network, computed in float32 on the CPU, says of every image: logits float64 [N, C]."""
    network = load_network(weights, None, images.classes, config.data).module.eval()
    with closing(EvalLoader(images, config.data, batch_size=config.training.batch_size)) as loader:
        pixels = (normalize_batch(batch, config.data, "cpu", len(images.classes))[0] for batch in loader)
        return torch.cat([network(batch) for batch in pixels]).double()
