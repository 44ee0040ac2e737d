"""The findings of a verification."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.settings import RerunSettings
from cache_tools.store.ledger import ShardKey

if TYPE_CHECKING:  # tolerance imports the teacher's torch, which reading does not need
    from cache_tools.verify.tolerance import Deviations


@dataclass(frozen=True)
class Damage:
    """A description of one damage, and its shard: None for sealed files, and for `foreign` files, which are not part of
    the cache."""

    message: str
    shard: ShardKey | None = None
    foreign: bool = False


@dataclass
class Report:
    """The scope of a verification, and what it found."""

    root: Path
    deep: bool
    again: RerunSettings | None = None
    shards: int = 0  # committed, in the extent
    missing: int = 0  # in the extent, not committed
    files: int = 0
    size: int = 0  # bytes of these files
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # neither content nor damage: files of a dead builder
    runs: "list[Deviations] | None" = None  # of the teacher, if it was run
    attaching: str | None = None  # the command that attaches a detached cache's text
    is_continued: bool = False  # its tokens are in part the teacher's, which no text gives again

    @property
    def damaged_shards(self) -> list[ShardKey]:
        return sorted({damage.shard for damage in self.damage if damage.shard is not None})

    def add_file(self, path: Path, data: bytes, matches: bool, shard: ShardKey | None) -> bool:
        """Count a file, and record the damage unless it matches the ledger. Return `matches`."""
        self.files, self.size = self.files + 1, self.size + len(data)
        if not matches:
            self.damage.append(Damage(f"{path}: not the file that the ledger describes ({len(data)} bytes)", shard))
        return matches
