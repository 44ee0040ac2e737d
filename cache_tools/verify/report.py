"""What a look at a cache has found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.settings import RecheckSettings
from cache_tools.store.ledger import ShardKey

if TYPE_CHECKING:  # it needs torch, which reading does not
    from cache_tools.verify.tolerance import Deviations


@dataclass(frozen=True)
class Damage:
    """What is wrong, and with which shard; None: with what was sealed, or with a file that belongs to nothing."""

    message: str
    shard: ShardKey | None = None


@dataclass
class Report:
    """What was looked at, and what was found."""

    root: Path
    deep: bool
    again: RecheckSettings | None = None
    shards: int = 0  # committed, in the extent
    missing: int = 0  # in the extent, not committed
    files: int = 0
    size: int = 0  # bytes of these files
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # neither content nor damage: what a dead builder left
    runs: "list[Deviations] | None" = None  # of the teacher, if there was one
    attaching: str | None = None  # the call that gives a detached cache its text

    @property
    def damaged_shards(self) -> list[ShardKey]:
        return sorted({damage.shard for damage in self.damage if damage.shard is not None})

    def sound(self, path: Path, data: bytes, matches: bool, shard: ShardKey | None) -> bool:
        """Counts a file, and notes the damage when it is not the one that the ledger describes."""
        self.files, self.size = self.files + 1, self.size + len(data)
        if not matches:
            self.damage.append(Damage(f"{path}: not the file that the ledger describes ({len(data)} bytes)", shard))
        return matches
