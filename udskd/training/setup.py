"""Before the first step: which folder, which options may change, and everything that can be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from udskd import methods
from udskd.config import schema
from udskd.config.schema import ROLES, Config, DataConfig
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
from udskd.training.storage.images import check_classes, identify, unreadable
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsSetup
from udskd.training.teacher_cache import reader

# Options that a resumed run may have otherwise: they say where and how it runs, not what it computes.
MOVABLE = (
    *("output", "data.root", "data.loader", "data.workers", "teacher.checkpoint", "training.device"),
    *("training.tensorboard", "training.save_every", "training.cuda_graph", "training.accumulate"),
)


def to_continue(config: Config, resume: Path | None, world: World) -> Path | None:
    """What to continue: as asked; or, where torchrun starts us again after a failure, the run that we had begun."""
    path = schema.run_folder(config)
    begun = _restarted() and RunFolder(path).started_by(os.environ.get("TORCHELASTIC_RUN_ID"))
    return path if any(world.gather(begun)) and resume is None else resume


def _restarted() -> bool:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def run_folder(config: Config, resume: Path | None, world: World, display: Display, previous: bool) -> RunFolder:
    if resume is None:
        folder = RunFolder(schema.run_folder(config), writes=world.is_rank0)
        if world.is_rank0:
            folder.check_free()
        return folder
    folder = RunFolder.open(resume, writes=world.is_rank0)
    for line in check_same(folder.config, config, resume):
        display.line(line)
    folder.lock()
    if previous and world.is_rank0 and not _restarted():  # else each restart would go back further
        restore_previous(folder)
    return folder


def check_same(stored: Config, wanted: Config, run: Path) -> list[str]:
    """What a run's continuation does otherwise than its beginning and may, in a line each.

    Raises ConfigError naming the first option that must not change, with both values.
    """
    old, new = schema.flatten(stored), schema.flatten(wanted)
    changed = [name for name, value in old.items() if new[name] != value]
    for name in changed:
        if name not in MOVABLE:
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
    sets: tuple[ImageSet, ImageSet],
) -> tuple[Session, dict[str, Model], StudentsSetup]:
    """Everything that can be wrong with the options, the images and the teacher's file shows here, before any work."""
    runtime, (train_set, val_set) = Runtime.from_config(config.training, world), sets
    runtime.loss_backend(config.loss)
    if world.is_rank0 and folder.begun:
        check_classes(config, folder, val_set.classes)
    shard = Shard(world.rank, world.ranks, config.training.accumulate)

    def on_unreadable(name: str, reason: str) -> None:
        if folder.log_unreadable(
            train_set.relative(name), name, reason
        ):  # not known from an earlier part of this run, or another process
            Display().line(f"skipping an image that cannot be read: {name} ({reason})")

    size, device = config.training.batch_size, runtime.device
    train = TrainLoader(
        train_set,
        config.data,
        seed=config.seed,
        batch_size=size,
        on_unreadable=on_unreadable,
        shard=shard,
        device=device,
    )
    train.unreadable |= unreadable(folder, train_set)
    val = EvalLoader(val_set, config.data, batch_size=min(size, MAX_EVALUATION_BATCH), shard=shard, device=device)
    session = Session(config, folder, runtime, train, val, val_set.classes, display, consensus)
    networks = {
        role: build_model(role, options, len(val_set.classes), config.data.image_size, config.seed)
        for role, options in (("student_a", config.student_a), ("student_b", config.student_b))
    }
    if methods.get(config.method).uses_teacher:
        networks["teacher"] = teacher.load_or_build(session)
    setup = StudentsSetup.from_config(config, len(val_set.classes), networks)
    if "teacher" in networks:
        # Both calls refuse now what would fail later: a teacher without the outputs needed, a cache of another teacher.
        setup.build_teacher_forward(config, runtime, networks["teacher"].module)
        cached = reader.open_cache(session, networks["teacher"])
        if cached is not None and world.is_rank0:
            if warning := cached.missing_manifest_warning():
                display.line(warning)
            with display.steps("identify the teacher cache's images", len(train_set)) as advance:
                cached.check_images(advance, consensus.poll_this_rank)
    if world.local_rank == 0:  # the processes of one machine have the same images
        session.manifest = identify(config, folder, {"train": train_set, "val": val_set}, display, consensus)
    if config.data.loader == "resident":
        with display.steps("decode the training images", len(train_set)) as advance:
            train.prepare(lambda *_: advance(), consensus.poll_this_rank)
    check_readable(val_set, config.data.workers, loader=config.data.loader, shard=shard)
    return session, networks, setup


def introduce(session: Session, networks: dict[str, Model]) -> None:
    config, size, world = session.config, session.config.data.image_size, session.world
    sizes = f"{len(session.train.images)} training and {len(session.val.images)} validation images"
    lines = [
        f"method {config.method}, seed {config.seed}, run folder {session.folder.path}",
        f"data: {config.data.root}, {sizes} of {len(session.classes)} classes at {size} px",
        *_ignored(session),
        *([shared] if (shared := describe_shared_images(session.train.images, session.val.images)) else []),
        f"device: {session.runtime.describe()}; loss backend: {session.runtime.loss_backend(config.loss)}",
        *(
            []
            if world.is_single
            else [f"processes: {world.ranks}, {session.train.shard.rows(session.train.batch_size)} images each"]
        ),
        *(f"{role}: {networks[role].describe()}" for role in ROLES if role in networks),
    ]
    for line in lines:
        session.display.line(line)
    if not session.folder.events("start"):
        session.folder.log("start", data=dataset(session), lines=lines)


def _ignored(session: Session) -> list[str]:
    """What the folders of each split hold besides images, in a line each."""
    splits = {"train": session.train.images, "val": session.val.images}
    return [f"{split}: {images.describe_ignored()}" for split, images in splits.items() if images.ignored]


def dataset(session: Session) -> dict[str, Any]:
    data: DataConfig = session.config.data
    return {
        "root": data.root,
        "classes": len(session.classes),
        "class_hash": class_hash(session.classes),
        "train_images": len(session.train.images),
        "val_images": len(session.val.images),
        "val_contents": None if session.manifest is None else content_hash(session.manifest["val"]),
        "image_size": data.image_size,
    }
