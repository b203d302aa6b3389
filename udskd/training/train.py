"""A whole run: `udskd train`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from udskd import methods
from udskd.config import schema
from udskd.config.schema import METHOD_SECTIONS, Config
from udskd.data import open_sets
from udskd.data.workers import translate_worker_death
from udskd.errors import CheckpointError, Interrupted, SystemLimit, explain_system_error
from udskd.models.zoo import Model
from udskd.process.settings import apply_settings
from udskd.progress import Display
from udskd.training.engine.loop import fit
from udskd.training.engine.session import Session
from udskd.training.networks.trainable import Network
from udskd.training.predictions import write_predictions
from udskd.training.runtime.distributed import StopConsensus, World, joined_processes
from udskd.training.runtime.signals import Stopped, StopRequest
from udskd.training.setup import describe_dataset, find_run_to_resume, log_header, open_run_folder, prepare
from udskd.training.storage.images import compare_contents, compare_listings, unreadable_images
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks.students import StudentsSetup, StudentsTask
from udskd.training.tasks.teacher import train_and_freeze
from udskd.training.tasks.teacher_metrics import teacher_metrics


def train(config: Config, *, resume: Path | None = None, previous: bool = False) -> dict[str, Any]:
    """Train the teacher (or load it) and both students; returns the summary, which is also RUN/summary.json.

    With resume, continue that run after the last step that it saved; with previous, after the save before the last one,
    for when the last file is damaged. Under torchrun all processes train together, and a restarted one continues.

    Raises UdskdError's subclasses: for options, data, checkpoints, and Interrupted after a signal that stops it, when
    everything complete is saved.
    """
    apply_settings()
    with joined_processes() as (world, stop):
        methods.check(config)  # here, so that only one process reports a mistake
        display, run = Display(silent=not world.is_rank0), find_run_to_resume(config, resume, world)
        folder = world.run_on_all_ranks(lambda: open_run_folder(config, run, world, display, previous))
        if folder.complete:
            display.line(f"{folder.path} is complete: there is nothing to continue")
            return folder.summary()
        return _train(config, folder, world, display, stop)


def _train(config: Config, folder: RunFolder, world: World, display: Display, stop: StopRequest) -> dict[str, Any]:
    session, begun = None, folder.begun
    try:
        sets = dict(zip(("train", "val"), world.run_on_all_ranks(lambda: open_sets(config.data)), strict=True))
        world.run_on_all_ranks(lambda: compare_listings(config.data, sets, world))
        consensus = StopConsensus(world, stop)
        session, models, setup = world.run_on_all_ranks(
            lambda: prepare(config, folder, world, display, consensus, sets)
        )
        images = session.manifest
        world.run_on_all_ranks(lambda: compare_contents(config.data, images, world))
        # not before: an error above leaves no folder behind
        world.run_on_all_ranks(lambda: folder.resume(images) if begun else folder.create(config, images))
        return _run(session, models, setup)
    except Stopped:
        raise _interrupted(session, folder) from None
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and folder.begun:  # the disk is at fault, not the file
            raise _correctable(error, folder) from None
        raise
    except Exception as error:
        if stop.requested and not world.is_peer_failure(error):
            # the signal caused the error, such as a worker process that received it too
            raise _interrupted(session, folder) from None
        if (translated := translate_worker_death(error)) is not error:
            raise translated from error
        if isinstance(limit := explain_system_error(error), SystemLimit) and limit is not error and folder.begun:
            raise _correctable(limit, folder) from error
        raise
    finally:
        if session is not None:
            session.train.close()
            session.val.close()
        folder.unlock()


def _run(session: Session, models: dict[str, Model], setup: StudentsSetup) -> dict[str, Any]:
    config, folder, display = session.config, session.folder, session.display
    log_header(session, models)
    build_forward = partial(setup.build_teacher_forward, config, session.runtime)
    teacher = train_and_freeze(session, models["teacher"], build_forward) if "teacher" in models else None
    measured = None if teacher is None else teacher_metrics(session, teacher)
    task = StudentsTask(config, session.runtime, session.train.steps_per_epoch, setup, teacher, models)
    metrics = fit(session, task, config.training.epochs, "students").metrics
    for network in task.networks:
        session.save_weights(folder.path / f"{network.role}.safetensors", network.model, network.result)
    write_predictions(session, {network.role: network.result for network in task.networks})
    summary = _summary(session, measured, task.networks, metrics)
    if not folder.events("end"):
        folder.log("end", **{key: summary[key] for key in ("status", "epochs", "images_per_second")})
    folder.write_summary(summary)
    display.line(f"done: {folder.path}")
    return summary


def _summary(
    session: Session, teacher: dict[str, Any] | None, networks: tuple[Network, Network], metrics: dict[str, Any]
) -> dict[str, Any]:
    config, epochs = session.config, session.folder.events("epoch")
    images, seconds = (sum(e.get(key, 0) for e in epochs) for key in ("images", "seconds"))
    students = {
        n.role: {"model": n.model.name, **metrics[n.role], "best_top1": n.best["top1"], "best_epoch": n.best["epoch"]}
        for n in networks
    }
    own = {name: getattr(Config(), name) for name in ("loss", "target", *METHOD_SECTIONS)}
    defaults = schema.flatten(replace(config, **own, teacher=replace(config.teacher, stage="auto")))
    return {
        "method": config.method,
        "seed": config.seed,
        "status": "complete",
        "epochs": config.training.epochs,
        "images_per_second": images / seconds if seconds else 0.0,  # none if all lines of the log are damaged
        "teacher": teacher,
        **students,
        "dataset": describe_dataset(session),
        "unreadable": len(unreadable_images(session.folder, session.train.images)),
        "options": {k: v for k, v in schema.flatten(config).items() if v != defaults[k]},
    }


def _correctable(error: CheckpointError | SystemLimit, folder: RunFolder) -> CheckpointError | SystemLimit:
    return type(error)(f"{error}; correct that, then run: udskd train --resume {folder.path}")


def _interrupted(session: Session | None, folder: RunFolder) -> Interrupted:
    if not folder.begun:
        return Interrupted("stopped before anything was trained")
    stopped = "stopped before any further step" if session is None else f"stopped; {session.saved} saved"
    return Interrupted(f"{stopped}; continue with: udskd train --resume {folder.path}")
