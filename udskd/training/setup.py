"""Before the first step: the run folder, the options that may change, and checks of options, images and teacher."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch

from udskd import methods
from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config
from udskd.data import EvalLoader, ImageSet, Shard, TrainLoader, check_readable, class_hash, describe_shared_images
from udskd.data.manifest import content_hash
from udskd.errors import ConfigError
from udskd.models.zoo import Model
from udskd.progress import Display
from udskd.training.engine.session import Session
from udskd.training.engine.state import restore_previous
from udskd.training.evaluation.evaluate import MAX_EVALUATION_BATCH
from udskd.training.networks.trainable import build_model
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.storage.images import check_classes, identify, unreadable_images
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsSetup
from udskd.training.teacher_cache import reader

MAY_CHANGE = (
    *("output", "data.root", "data.loader", "data.workers", "teacher.checkpoint", "training.device"),
    *("training.tensorboard", "training.save_every", "training.cuda_graph", "training.accumulate"),
)
"""Options that may differ when a run is resumed: they determine where and how it runs, not what it computes."""


def find_run_to_resume(config: Config, resume: Path | None, world: World) -> Path | None:
    """The run to resume, None for a new one: `resume`, or after a restart by torchrun the run that it had started."""
    path = schema.run_folder(config)
    started = _is_restart() and RunFolder(path).started_by(os.environ.get("TORCHELASTIC_RUN_ID"))
    return path if any(world.gather(started)) and resume is None else resume


def _is_restart() -> bool:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def open_run_folder(config: Config, resume: Path | None, world: World, display: Display, previous: bool) -> RunFolder:
    """The folder of the run: a new one, which is not created yet, or that of the run to resume.

    previous: put the train state before the last one in its place. Raises ConfigError for a folder that is not free or
    not a run's, and for options that must not change.
    """
    if resume is None:
        folder = RunFolder(schema.run_folder(config), writes=world.is_rank0)
        if world.is_rank0:
            folder.check_free()
        return folder
    folder = RunFolder.open(resume, writes=world.is_rank0)
    for line in check_options(folder.config, config, resume):
        display.line(line)
    folder.lock()
    if previous and world.is_rank0 and not _is_restart():  # else each restart would go back once more
        restore_previous(folder)
    return folder


def check_options(stored: Config, wanted: Config, run: Path) -> list[str]:
    """A line for each option that differs from the run's and may.

    Raises ConfigError for the first option that must not change, with both values.
    """
    old, new = schema.flatten(stored), schema.flatten(wanted)
    changed = [name for name, value in old.items() if new[name] != value]
    for name in changed:
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"{run} was started with {name} = {old[name]!r}, not {new[name]!r}: leave the option out to continue "
                "it, or start another run"
            )
    return [f"{name}: {old[name]!r} before, {new[name]!r} from here on" for name in changed if name != "output"]


def prepare(
    config: Config,
    folder: RunFolder,
    world: World,
    display: Display,
    consensus: StopConsensus,
    sets: dict[str, ImageSet],
) -> tuple[Session, dict[str, Model], StudentsSetup]:
    """The session, the models by role and the method's setup.

    Errors in the options, the images and the teacher's file are raised here, before any work.
    """
    session = _open_session(config, folder, world, display, consensus, sets)
    models = _build_models(session)
    setup = StudentsSetup.from_config(config, len(session.classes), models)
    _check_batch_norm(session, models)
    if "teacher" in models:
        _check_cache(session, models["teacher"])
    if world.local_rank == 0:  # the processes of one machine read the same images
        session.manifest = identify(config, folder, sets, display, consensus)
    if config.data.loader == "resident":
        with display.steps("decode the training images", len(sets["train"])) as advance:
            session.train.prepare(lambda *_: advance(), consensus.poll_this_rank)
    check_readable(sets["val"], config.data.workers, loader=config.data.loader, shard=session.train.shard)
    return session, models, setup


def _open_session(
    config: Config,
    folder: RunFolder,
    world: World,
    display: Display,
    consensus: StopConsensus,
    sets: dict[str, ImageSet],
) -> Session:
    runtime = Runtime.from_config(config.training, world)
    runtime.loss_backend(config.loss)
    classes = sets["val"].classes
    if world.is_rank0 and folder.begun:
        check_classes(config, folder, classes)
    train, val = _train_loader(config, folder, runtime, sets["train"]), _val_loader(config, runtime, sets["val"])
    return Session(config, folder, runtime, train, val, classes, display, consensus)


def _train_loader(config: Config, folder: RunFolder, runtime: Runtime, images: ImageSet) -> TrainLoader:
    def on_unreadable(name: str, reason: str) -> None:
        if folder.log_unreadable(images.strip_root(name), name, reason):
            Display().line(f"skipping an image that cannot be read: {name} ({reason})")

    loader = TrainLoader(
        images,
        config.data,
        seed=config.seed,
        batch_size=config.training.batch_size,
        on_unreadable=on_unreadable,
        shard=_shard(config, runtime.world),
        device=runtime.device,
    )
    loader.unreadable |= unreadable_images(folder, images)
    return loader


def _val_loader(config: Config, runtime: Runtime, images: ImageSet) -> EvalLoader:
    size = min(config.training.batch_size, MAX_EVALUATION_BATCH)
    shard = _shard(config, runtime.world)
    return EvalLoader(images, config.data, batch_size=size, shard=shard, device=runtime.device)


def _shard(config: Config, world: World) -> Shard:
    return Shard(world.rank, world.ranks, config.training.accumulate)


def _build_models(session: Session) -> dict[str, Model]:
    config, classes = session.config, len(session.classes)
    models = {
        role: build_model(role, options, classes, config.data.image_size, config.seed)
        for role, options in (("student_a", config.student_a), ("student_b", config.student_b))
    }
    if methods.get(config.method).uses_teacher:
        models["teacher"] = teacher.load_or_build(session)
    return models


def _check_batch_norm(session: Session, models: dict[str, Model]) -> None:
    """ConfigError if each batch holds a single image, and a network that is trained has a batch-norm layer for which
    this is a single value."""
    shard, runtime = session.train.shard, session.runtime
    if shard.rows(session.train.batch_size) > 1 or (runtime.sync_batchnorm and not session.world.is_single):
        return
    for role, model in models.items():
        if role in STUDENTS or teacher.is_trained(session):
            _check_single_image(role, model, session)


def _check_single_image(role: str, model: Model, session: Session) -> None:
    twin, side = copy.deepcopy(model.module).to("meta").train(), session.config.data.image_size
    try:
        with torch.no_grad():
            twin(torch.zeros(1, 3, side, side, device="meta"))
    except ValueError as error:
        shard = session.train.shard
        raise ConfigError(
            f"a batch would hold 1 image ({session.train.batch_size} images in a step, {shard.ranks} processes x "
            f"{shard.parts} parts), but batch-norm in {role} ({model.name}) needs two: {str(error).splitlines()[0]}; "
            "raise training.batch_size, or lower training.accumulate"
        ) from None


def _check_cache(session: Session, model: Model) -> None:
    """Raises the errors that a cache of another teacher or of other images would cause later."""
    display, cache = session.display, reader.open_cache(session, model)
    if cache is None or not session.world.is_rank0:
        return
    if warning := cache.missing_manifest_warning():
        display.line(warning)
    with display.steps("identify the teacher cache's images", len(session.train.images)) as advance:
        cache.check_images(advance, session.consensus.poll_this_rank)


def log_header(session: Session, models: dict[str, Model]) -> None:
    """Display what is trained on what, and log it at the start of a run."""
    lines = [*_describe_data(session), *_describe_processes(session)]
    lines += [f"{role}: {models[role].describe()}" for role in ROLES if role in models]
    for line in lines:
        session.display.line(line)
    if not session.folder.events("start"):
        session.folder.log("start", data=describe_dataset(session), lines=lines)


def _describe_data(session: Session) -> list[str]:
    config, train, val = session.config, session.train.images, session.val.images
    sizes = f"{len(train)} training and {len(val)} validation images of {len(session.classes)} classes"
    shared = describe_shared_images(train, val)
    return [
        f"method {config.method}, seed {config.seed}, run folder {session.folder.path}",
        f"data: {config.data.root}, {sizes} at {config.data.image_size} px",
        *(f"{split}: {s.describe_ignored()}" for split, s in (("train", train), ("val", val)) if s.ignored),
        *([shared] if shared else []),
    ]


def _describe_processes(session: Session) -> list[str]:
    world, train = session.world, session.train
    lines = [f"device: {session.runtime.describe()}; loss backend: {session.runtime.loss_backend(session.config.loss)}"]
    if not world.is_single:
        lines.append(f"processes: {world.ranks}, {train.shard.rows(train.batch_size)} images each")
    return lines


def describe_dataset(session: Session) -> dict[str, Any]:
    """The images of the run, for the log and the summary."""
    data = session.config.data
    return {
        "root": data.root,
        "classes": len(session.classes),
        "class_hash": class_hash(session.classes),
        "train_images": len(session.train.images),
        "val_images": len(session.val.images),
        "val_contents": None if session.manifest is None else content_hash(session.manifest["val"]),
        "image_size": data.image_size,
    }
