"""What the students of a finished run say about every validation image: RUN/predictions.safetensors.

How much independently trained students differ shows only when their predictions are put side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.numpy
from torch import nn

from udskd.files import PREDICTIONS, write_atomic
from udskd.training.engine.session import Session

LARGEST = 256 * 2**20  # bytes


def write(session: Session, networks: Mapping[str, nn.Module]) -> None:
    """p(class | image) of each network, by role: float16 [N, C] in the order of the validation images.

    All processes must call it. A set so large that the file would exceed 256 MiB is left out.
    """
    size = 2 * len(networks) * len(session.val.images) * len(session.classes)
    if size > LARGEST:
        session.display.line(f"{PREDICTIONS}: left out, it would take {size / 2**20:.0f} MiB")
        return
    rows = session.evaluator.predict(networks)
    if session.world.is_rank0:
        write_atomic(session.folder.path / PREDICTIONS, safetensors.numpy.save(rows))
