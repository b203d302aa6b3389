"""Which part of each step's images is ours, where several processes train together."""

from __future__ import annotations

from dataclasses import dataclass

from udskd.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `ranks`, which takes its images of a step in `parts` batches, one after the other.

    A step's images, in the order of the epoch, are cut into parts x ranks equal pieces; piece part * ranks + rank is
    ours. So all processes together see the very images that one process alone would see.
    """

    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def rows(self, batch_size: int) -> int:
        """Images in one of our batches. ConfigError if a step's images cannot be cut into equal pieces."""
        pieces = self.ranks * self.parts
        if batch_size % pieces:
            raise ConfigError(
                f"{batch_size} images in a step cannot be cut into {pieces} equal pieces ({self.ranks} processes x "
                f"{self.parts} parts): choose training.batch_size and training.accumulate accordingly"
            )
        return batch_size // pieces

    def begin(self, part: int, batch_size: int) -> int:
        """Place of the first image of our batch `part` among the step's images."""
        return (part * self.ranks + self.rank) * self.rows(batch_size)
