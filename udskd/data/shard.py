"""The images of each step that one process trains on, where several processes train together."""

from __future__ import annotations

from dataclasses import dataclass

from udskd.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `ranks`, which accumulates the gradients of a step over `parts` batches.

    The images of a step, in the order of the epoch, are divided into parts x ranks equal pieces; piece
    part * ranks + rank is batch `part` of this process. So all processes together see the images that one alone would.
    """

    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def rows(self, batch_size: int) -> int:
        """Images in one batch of the shard. ConfigError if a step's images cannot be divided into equal pieces."""
        pieces = self.ranks * self.parts
        if batch_size % pieces:
            raise ConfigError(
                f"{batch_size} images in a step cannot be cut into {pieces} equal pieces ({self.ranks} processes x "
                f"{self.parts} parts): choose training.batch_size and training.accumulate accordingly"
            )
        return batch_size // pieces

    def begin(self, part: int, batch_size: int) -> int:
        """Index of the first image of the shard's batch `part` among the step's images."""
        return (part * self.ranks + self.rank) * self.rows(batch_size)
