"""RUN/predictions.safetensors: the students' predictions for every validation image. `udskd compare` computes from them
how much independently trained students differ."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.numpy
from torch import nn

from udskd.files import PREDICTIONS, write_atomic
from udskd.training.engine.session import Session

MAX_BYTES = 256 * 2**20


def write_predictions(session: Session, networks: Mapping[str, nn.Module]) -> None:
    """Write p(class | image) of each network, by role: float16 [N, C] in the order of the validation images.

    All processes must call it. Nothing is written if the file would exceed 256 MiB.
    """
    size = 2 * len(networks) * len(session.val.images) * len(session.classes)
    if size > MAX_BYTES:
        session.display.line(f"{PREDICTIONS}: left out, it would take {size / 2**20:.0f} MiB")
        return
    rows = session.evaluator.predict(networks)
    if session.world.is_rank0:
        write_atomic(session.folder.path / PREDICTIONS, safetensors.numpy.save(rows))
