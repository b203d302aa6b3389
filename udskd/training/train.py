"""A whole run: `udskd train`."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from udskd import methods
from udskd.config import schema
from udskd.config.schema import METHOD_SECTIONS, Config
from udskd.data import normalize_batch, open_sets
from udskd.data.workers import translate_worker_death
from udskd.errors import CheckpointError, Interrupted
from udskd.models.zoo import Model
from udskd.progress import Display
from udskd.training import predictions
from udskd.training.engine.loop import fit
from udskd.training.engine.session import Session
from udskd.training.evaluation.evaluate import format_metrics
from udskd.training.evaluation.teacher_check import SuspectedFault, find_fault
from udskd.training.networks.trainable import Network
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.runtime.signals import Stopped, StopRequest
from udskd.training.setup import dataset, introduce, prepare, run_folder, to_continue
from udskd.training.storage.images import compare_contents, compare_listings, unreadable
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsSetup, StudentsTask


def train(config: Config, *, resume: Path | None = None, previous: bool = False) -> dict[str, Any]:
    """Train the teacher (or load it) and both students; returns the summary, which is also RUN/summary.json.

    With resume, continue that run after the last step that it saved, or with previous after the one saved before, for
    when the last file is damaged. Under torchrun all processes train together; started again by it, they continue.

    Raises UdskdError's subclasses: for options, data, checkpoints, and Interrupted after Ctrl-C or SIGTERM, when
    everything complete is saved.
    """
    methods.check(config)
    world = World.join()
    display, stop = Display(silent=not world.is_rank0), StopRequest(ignore_repeats=not world.is_single)
    try:
        with stop:
            begun = to_continue(config, resume, world)
            folder = world.run_on_all_ranks(lambda: run_folder(config, begun, world, display, previous))
            if folder.complete:
                display.line(f"{folder.path} is complete: there is nothing to continue")
                return folder.summary()
            return _train(config, folder, world, display, stop)
    except Exception as error:
        if (reported := world.report_once(error, stop)) is error:
            raise
        raise reported from None
    finally:
        world.leave(failed=sys.exc_info()[0] is not None)


def _train(config: Config, folder: RunFolder, world: World, display: Display, stop: StopRequest) -> dict[str, Any]:
    session, begun = None, folder.begun
    try:
        sets = world.run_on_all_ranks(lambda: open_sets(config.data))
        world.run_on_all_ranks(
            lambda: compare_listings(config.data, dict(zip(("train", "val"), sets, strict=True)), world)
        )
        consensus = StopConsensus(world, stop)
        session, networks, setup = world.run_on_all_ranks(
            lambda: prepare(config, folder, world, display, consensus, sets)
        )
        images = session.manifest
        world.run_on_all_ranks(lambda: compare_contents(config.data, images, world))
        # only now, so that a mistake found on the way leaves nothing behind
        world.run_on_all_ranks(lambda: folder.resume(images) if begun else folder.create(config, images))
        return _run(session, networks, setup)
    except Stopped:
        raise _interrupted(session, folder) from None
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and folder.begun:  # the disk's fault, not the file's
            raise CheckpointError(f"{error}; mend that, then: udskd train --resume {folder.path}") from None
        raise
    except Exception as error:
        if stop.requested and not world.is_peer_failure(error):
            # what breaks now, such as a worker that got the signal, is no news
            raise _interrupted(session, folder) from None
        if (died := translate_worker_death(error)) is not error:
            raise died from error
        raise
    finally:
        if session is not None:
            session.train.close()
            session.val.close()
        folder.unlock()


def _run(session: Session, networks: dict[str, Model], setup: StudentsSetup) -> dict[str, Any]:
    config, folder, display = session.config, session.folder, session.display
    introduce(session, networks)
    says = partial(setup.build_teacher_forward, config, session.runtime)
    taught = teacher.train_and_freeze(session, networks["teacher"], says) if "teacher" in networks else None
    measured = None if taught is None else _measured(session, taught)
    task = StudentsTask(config, session.runtime, session.train.steps_per_epoch, setup, taught, networks)
    metrics = fit(session, task, config.training.epochs, "students")
    for network in task.networks:
        session.save_weights(folder.path / f"{network.role}.safetensors", network.model, network.result)
    predictions.write(session, {network.role: network.result for network in task.networks})
    summary = _summary(session, measured, task.networks, metrics)
    if not folder.events("end"):
        folder.log("end", **{key: summary[key] for key in ("status", "epochs", "images_per_second")})
    folder.write_summary(summary)
    display.line(f"done: {folder.path}")
    return summary


def _measured(session: Session, taught: teacher.FrozenTeacher) -> dict[str, Any]:
    """The teacher's metrics, measured once in a run."""
    known = session.world.gather(session.folder.events("teacher"))[0]
    if known and known[-1]["fingerprint"] == taught.fingerprint:
        # earlier versions did not log the stem
        teacher.refuse_other_stem(session, taught.model, known[-1].get("stem", taught.model.stem))
        return {k: v for k, v in known[-1].items() if k not in ("event", "time", "fingerprint", "stem")}
    if known:
        raise CheckpointError(
            f"{session.folder.path} was started with another teacher than {session.config.teacher.checkpoint}: "
            "put that one back, or start another run"
        )
    metrics, predicted = session.evaluator.evaluate_and_classify({"teacher": taught.model.module})["teacher"]
    if not math.isfinite(metrics["nll"]):
        precision = session.runtime.precision
        or_fp32 = "" if precision == "fp32" else ", or set training.precision to fp32"
        raise CheckpointError(
            f"{teacher.describe_source(session)} gives answers that are NaN or infinite to the validation images in "
            f"{precision} arithmetic: give another teacher{or_fp32}"
        )
    _refuse_overflow(session, taught)
    stage = methods.teacher_stage(session.config)
    taught_further = {} if stage is None else {"stage": stage.name}
    measured = {"model": taught.model.name, **taught_further, **metrics}
    session.display.line(f"teacher: {format_metrics(measured)}")
    _warn(session, taught.model, find_fault(session.val.images.labels, predicted, session.classes))
    session.folder.log("teacher", fingerprint=taught.fingerprint, stem=taught.model.stem, **measured)
    return measured


def _refuse_overflow(session: Session, taught: teacher.FrozenTeacher) -> None:
    """CheckpointError if the teacher's answers overflow in fp16, in which it was not measured, seen on one batch."""
    half = session.runtime.dtype_of(session.config.teacher.precision) == torch.float16
    if not half or taught.cache is not None:
        return
    data, runtime, bad = session.config.data, session.runtime, False
    with closing(runtime.prefetch(session.val)) as batches:
        if (batch := next(batches, None)) is not None:
            images, _ = normalize_batch(batch, data, runtime.device, len(session.classes), runtime.memory_format)
            logits = taught.forward(images).logits
            bad = logits is not None and not bool(logits.isfinite().all())
    if any(session.world.gather(bad)):
        answers = f"{teacher.describe_source(session)} gives answers that are NaN or infinite in fp16"
        raise CheckpointError(f"{answers}: set teacher.precision to bf16 or fp32")


def _warn(session: Session, model: Model, found: SuspectedFault | None) -> None:
    """A line and an event if the teacher's answers look wrong, once in a run."""
    if found is None or session.folder.events("teacher_warning"):
        return
    text = f"{found.text}; {_advice(session, model, found)}"
    session.display.line(f"teacher: warning about {teacher.describe_source(session)}: {text}")
    session.folder.log("teacher_warning", cause=found.cause, text=text)


def _advice(session: Session, model: Model, found: SuspectedFault) -> str:
    """What is likely wrong with the teacher and what to do about it."""
    if found.cause == "class_order" and (session.config.teacher.checkpoint is None or model.trained_at is not None):
        return "it was trained on classes of these names in this order, so look into the folders of train and val"
    if found.cause == "class_order":
        return "its classes are in another order than the image folders', which are sorted: sort its last layer's rows"
    if session.config.teacher.checkpoint is None:
        return "it has learnt nothing yet: train it longer (teacher.epochs) or with another teacher.lr"
    return (
        "likely it knows images of another normalisation (data.mean, data.std) or size, or has another stem "
        "(teacher.stem), other classes or another order of them"
    )


def _summary(
    session: Session, taught: dict[str, Any] | None, networks: tuple[Network, Network], metrics: dict[str, Any]
) -> dict[str, Any]:
    config, epochs = session.config, session.folder.events("epoch")
    seconds = sum(e["seconds"] for e in epochs)
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
        "images_per_second": sum(e["images"] for e in epochs) / seconds,
        "teacher": taught,
        **students,
        "dataset": dataset(session),
        "unreadable": len(unreadable(session.folder, session.train.images)),
        "options": {k: v for k, v in schema.flatten(config).items() if v != defaults[k]},
    }


def _interrupted(session: Session | None, folder: RunFolder) -> Interrupted:
    if not folder.begun:
        return Interrupted("stopped before anything was trained")
    stopped = "stopped before any further step" if session is None else f"stopped; {session.saved} saved"
    return Interrupted(f"{stopped}; continue with: udskd train --resume {folder.path}")
