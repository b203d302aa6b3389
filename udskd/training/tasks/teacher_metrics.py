"""The teacher's own metrics, measured once in a run, and a warning where its predictions look wrong."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import torch

from udskd import methods
from udskd.data import normalize_batch
from udskd.errors import CheckpointError
from udskd.models.zoo import Model
from udskd.training.engine.session import Session
from udskd.training.evaluation.evaluate import format_metrics
from udskd.training.evaluation.teacher_check import SuspectedFault, find_fault
from udskd.training.tasks.teacher import FrozenTeacher, describe_source, refuse_other_stem


def teacher_metrics(session: Session, teacher: FrozenTeacher) -> dict[str, Any]:
    """The model's name and the metrics on the validation images, from the log of a continued run.

    Raises CheckpointError if the run was started with another teacher, or the teacher's outputs are not finite.
    """
    events = session.world.gather(session.folder.events("teacher"))[0]
    if not events:
        return _measure(session, teacher)
    last = events[-1]
    if last["fingerprint"] != teacher.fingerprint:
        raise CheckpointError(
            f"{session.folder.path} was started with another teacher than {session.config.teacher.checkpoint}: "
            "put that one back, or start another run"
        )
    refuse_other_stem(session, teacher.model, last.get("stem", teacher.model.stem))  # earlier versions log no stem
    return {k: v for k, v in last.items() if k not in ("event", "time", "fingerprint", "stem")}


def _measure(session: Session, teacher: FrozenTeacher) -> dict[str, Any]:
    metrics, predicted = teacher.evaluation or session.evaluator.evaluate({"teacher": teacher.model.module})["teacher"]
    _refuse_not_finite(session, metrics)
    _refuse_overflow(session, teacher)
    stage = methods.teacher_stage(session.config)
    values = {"model": teacher.model.name, **({} if stage is None else {"stage": stage.name}), **metrics}
    session.display.line(f"teacher: {format_metrics(values)}")
    _warn(session, teacher.model, find_fault(session.val.images.labels, predicted, session.classes))
    session.folder.log("teacher", fingerprint=teacher.fingerprint, stem=teacher.model.stem, **values)
    return values


def _refuse_not_finite(session: Session, metrics: dict[str, float]) -> None:
    if not math.isfinite(metrics["nll"]):
        precision = session.runtime.precision
        or_fp32 = "" if precision == "fp32" else ", or set training.precision to fp32"
        raise CheckpointError(
            f"{describe_source(session)} gives logits that are NaN or infinite for the validation images in "
            f"{precision} arithmetic: give another teacher{or_fp32}"
        )


def _refuse_overflow(session: Session, teacher: FrozenTeacher) -> None:
    """CheckpointError if the teacher's logits for one batch overflow in fp16 (teacher.precision), in which the metrics
    are not measured."""
    half = session.runtime.dtype_of(session.config.teacher.precision) == torch.float16
    if not half or teacher.cache is not None:
        return
    data, runtime, bad = session.config.data, session.runtime, False
    with closing(runtime.prefetch(session.val)) as batches:
        if (batch := next(batches, None)) is not None:
            images, _ = normalize_batch(batch, data, runtime.device, len(session.classes), runtime.memory_format)
            logits = teacher.forward(images).logits
            bad = logits is not None and not bool(logits.isfinite().all())
    if any(session.world.gather(bad)):
        problem = f"{describe_source(session)} gives logits that are NaN or infinite in fp16"
        raise CheckpointError(f"{problem}: set teacher.precision to bf16 or fp32")


def _warn(session: Session, model: Model, fault: SuspectedFault | None) -> None:
    """Display and log a suspected fault, once in a run."""
    if fault is None or session.folder.events("teacher_warning"):
        return
    text = f"{fault.text}; {_advice(session, model, fault)}"
    session.display.line(f"teacher: warning about {describe_source(session)}: {text}")
    session.folder.log("teacher_warning", cause=fault.cause, text=text)


def _advice(session: Session, model: Model, fault: SuspectedFault) -> str:
    """The likely cause of the fault, and what to do."""
    if fault.cause == "class_order" and (session.config.teacher.checkpoint is None or model.trained_at is not None):
        return "it was trained on classes of these names in this order, so check the folders of train and val"
    if fault.cause == "class_order":
        return "its classes are in another order than the image folders', which are sorted: sort its last layer's rows"
    if session.config.teacher.checkpoint is None:
        return "it has learnt nothing yet: train it longer (teacher.epochs) or with another teacher.lr"
    return (
        "it was probably trained on images with another normalisation (data.mean, data.std) or size, or has another "
        "stem (teacher.stem), other classes or another order of them"
    )
