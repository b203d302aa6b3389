"""What the phases of one run share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from udskd.config.schema import Config
from udskd.data import EvalLoader, TrainLoader
from udskd.data.manifest import Manifest
from udskd.models.checkpoints import WeightsInfo, save_weights
from udskd.models.zoo import Model
from udskd.progress import Display
from udskd.training.evaluation.evaluate import Evaluator
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.storage.run_folder import RunFolder


@dataclass
class Session:
    """A run in progress: its options, folder, device and processes, loaders, display and consensus about stopping."""

    config: Config
    folder: RunFolder
    runtime: Runtime
    train: TrainLoader
    val: EvalLoader
    classes: tuple[str, ...]
    display: Display
    consensus: StopConsensus
    manifest: Manifest | None = None
    """The list of the images, in one process of each machine."""
    saved: str = "no complete epoch"
    """What is saved on the disk, for the message of an interrupted run."""

    @property
    def world(self) -> World:
        return self.runtime.world

    @property
    def evaluator(self) -> Evaluator:
        """The evaluation on the validation images."""
        return Evaluator(self.val, self.config.data, self.runtime, self.display, self.consensus.poll)

    def save_weights(self, path: Path, model: Model, result: nn.Module) -> None:
        """Write `result`, the trained network of a model. Only rank 0 writes."""
        if not self.world.is_rank0:
            return
        data = self.config.data
        info = WeightsInfo(
            *(model.name, model.stem, self.classes, data.image_size),
            *(data.mean, data.std, data.eval_crop, model.options),
        )
        save_weights(path, result.state_dict(), info)
