"""A whole run: `udskd train` and `udskd eval`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from udskd import methods, recipe
from udskd.config import Config, DataConfig, LossConfig
from udskd.data import EvalLoader, TrainLoader, check_readable, class_hash, open_sets
from udskd.errors import CheckpointError, ConfigError, Interrupted
from udskd.models import Model
from udskd.training import students, teacher, weights
from udskd.training.evaluate import brief, evaluate
from udskd.training.fit import fit
from udskd.training.folder import RunFolder
from udskd.training.network import ROLES, Network, build_model
from udskd.training.progress import Display
from udskd.training.runtime import Runtime
from udskd.training.session import Session
from udskd.training.signals import Stopped, StopRequest

# Options that a resumed run may have otherwise: they say where it runs, not what it computes.
MOVABLE = ("output", "data.root", "data.workers", "teacher.checkpoint", "training.device", "training.tensorboard")


def train(config: Config, *, resume: Path | None = None) -> dict[str, Any]:
    """Train the teacher (or load it) and both students; returns the summary, which is also RUN/summary.json.

    With resume, continue that run after its last complete epoch. Raises UdskdError's subclasses: for options, data,
    checkpoints, and Interrupted after Ctrl-C or SIGTERM, when everything complete is saved.
    """
    recipe.check(config)
    display, stop = Display(), StopRequest()
    folder = RunFolder(Path(config.output or default_output(config))) if resume is None else RunFolder.open(resume)
    if resume is None:
        folder.check_free()
    else:
        check_same(folder.config, config, resume)
        if folder.complete:
            display.line(f"{resume} is complete: there is nothing to continue")
            return folder.summary()
    with stop:
        session, networks = _prepare(config, folder, display, stop)
        if resume is None:  # only now, so that a mistake found on the way leaves nothing behind
            folder.create(config)
        try:
            return _run(session, networks)
        except Stopped:
            raise _interrupted(session) from None
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # the disk's fault, not the file's
                raise CheckpointError(f"{error}; mend that, then: udskd train --resume {folder.path}") from None
            raise
        except Exception:
            if stop.requested:  # what breaks now, such as a worker that died of the same signal, is not the news
                raise _interrupted(session) from None
            raise


def evaluate_run(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Evaluate a run's trained networks on its validation images, or on those of another root with the same classes.

    Returns metrics by role ("teacher" only where the run trained one). Raises CheckpointError if the classes differ.
    """
    folder = RunFolder.open(run)
    config = folder.config
    data = config.data if data_root is None else replace(config.data, root=data_root)
    files = {role: run / f"{role}.safetensors" for role in ROLES if (run / f"{role}.safetensors").exists()}
    if not {"student_a", "student_b"} <= files.keys():
        raise CheckpointError(f"{run} holds no trained students yet: udskd train --resume {run} continues it")
    display, runtime = Display(), Runtime.of(config.training)
    _, val_set = open_sets(data)
    networks = {}
    for role, file in files.items():
        model = weights.load_network(file, None, val_set.classes, data)
        networks[role] = runtime.place(model.module)
    loader = EvalLoader(val_set, data, batch_size=config.training.batch_size)
    with StopRequest() as stop:
        try:
            results = evaluate(networks, loader, data, runtime, display, stop)
        except Stopped:
            raise Interrupted("stopped before the evaluation was complete") from None
    for role, metrics in results.items():
        display.line(f"{role}: {brief(metrics)}  top-5 {metrics['top5']:.2f} %  brier {metrics['brier']:.3f}")
    return results


def default_output(config: Config) -> str:
    """runs/METHOD-DATA-seedN."""
    return f"runs/{config.method}-{Path(config.data.root).resolve().name}-seed{config.seed}"


def check_same(stored: Config, wanted: Config, run: Path) -> None:
    """ConfigError naming the first option in which a run's continuation would differ from its beginning."""
    old, new = recipe.flatten(stored), recipe.flatten(wanted)
    for name, value in old.items():
        if name not in MOVABLE and new[name] != value:
            raise ConfigError(
                f"{run} was started with {name} = {value!r}, not {new[name]!r}: leave the option out to continue it, "
                "or start another run"
            )


def _prepare(
    config: Config, folder: RunFolder, display: Display, stop: StopRequest
) -> tuple[Session, dict[str, Model]]:
    """Everything that can be wrong with the options, the images and the teacher's file shows here, before any work."""
    runtime, (train_set, val_set) = Runtime.of(config.training), open_sets(config.data)
    runtime.loss_backend(config.loss)

    def on_unreadable(name: str, reason: str) -> None:
        display.line(f"skipping an image that cannot be read: {name} ({reason})")
        folder.log("unreadable", name=name, reason=reason)

    batch_size, pin = config.training.batch_size, runtime.device.type == "cuda"
    train = TrainLoader(
        train_set, config.data, seed=config.seed, batch_size=batch_size, on_unreadable=on_unreadable, pin_memory=pin
    )
    val = EvalLoader(val_set, config.data, batch_size=batch_size, pin_memory=pin)
    session = Session(config, folder, runtime, train, val, val_set.classes, display, stop)
    networks = {
        role: build_model(role, options, len(val_set.classes), config.data.image_size, config.seed)
        for role, options in (("student_a", config.student_a), ("student_b", config.student_b))
    }
    if methods.get(config.method).uses_teacher:
        networks["teacher"] = teacher.find(session)
    check_readable(val_set, config.data.workers)
    return session, networks


def _run(session: Session, networks: dict[str, Model]) -> dict[str, Any]:
    config, folder, display = session.config, session.folder, session.display
    _introduce(session, networks)
    method = methods.get(config.method)(config.loss)
    frozen = teacher.obtain(session, networks["teacher"]) if method.uses_teacher else None
    taught = None
    if frozen is not None:
        modules = {"teacher": frozen.module}
        results = evaluate(modules, session.val, config.data, session.runtime, display, session.stop)
        taught = {"model": frozen.name, **results["teacher"]}
        display.line(f"teacher: {brief(taught)}")
        folder.log("teacher", **taught)
    task = students.StudentsTask(session, method, frozen, networks["student_a"], networks["student_b"])
    metrics = fit(session, task, config.training.epochs, folder.checkpoints / "students.pt")
    for network in task.networks:
        session.save_weights(folder.path / f"{network.role}.safetensors", network.model, network.result)
    summary = _summary(session, taught, task.networks, metrics)
    folder.log("end", **{key: summary[key] for key in ("status", "epochs", "images_per_second")})
    folder.write_summary(summary)
    display.line(f"done: {folder.path}")
    return summary


def _introduce(session: Session, networks: dict[str, Model]) -> None:
    config, size = session.config, session.config.data.image_size
    sizes = f"{len(session.train.images)} training and {len(session.val.images)} validation images"
    lines = [
        f"method {config.method}, seed {config.seed}, run folder {session.folder.path}",
        f"data: {config.data.root}, {sizes} of {len(session.classes)} classes at {size} px",
        f"device: {session.runtime.describe()}; loss backend: {session.runtime.loss_backend(config.loss)}",
        *(f"{role}: {networks[role].describe()}" for role in ROLES if role in networks),
    ]
    for line in lines:
        session.display.line(line)
    session.folder.log("start", data=_dataset(session), lines=lines)


def _summary(
    session: Session, taught: dict[str, Any] | None, networks: tuple[Network, Network], metrics: dict[str, Any]
) -> dict[str, Any]:
    config, epochs = session.config, session.folder.events("epoch")
    seconds = sum(e["seconds"] for e in epochs)
    students = {
        n.role: {"model": n.model.name, **metrics[n.role], "best_top1": n.best["top1"], "best_epoch": n.best["epoch"]}
        for n in networks
    }
    defaults = recipe.flatten(replace(config, loss=LossConfig()))
    return {
        "method": config.method,
        "seed": config.seed,
        "status": "complete",
        "epochs": config.training.epochs,
        "images_per_second": sum(e["images"] for e in epochs) / seconds,
        "teacher": taught,
        **students,
        "dataset": _dataset(session),
        "unreadable": len({e["name"] for e in session.folder.events("unreadable")}),
        "options": {k: v for k, v in recipe.flatten(config).items() if v != defaults[k]},
    }


def _dataset(session: Session) -> dict[str, Any]:
    data: DataConfig = session.config.data
    return {
        "root": data.root,
        "classes": len(session.classes),
        "class_hash": class_hash(session.classes),
        "train_images": len(session.train.images),
        "val_images": len(session.val.images),
        "image_size": data.image_size,
    }


def _interrupted(session: Session) -> Interrupted:
    return Interrupted(f"stopped; {session.saved} saved; continue with: udskd train --resume {session.folder.path}")
