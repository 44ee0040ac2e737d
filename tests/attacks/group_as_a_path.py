"""A record of a shard in a group that is a path."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "train"
REFUSED = "group: expected train, found '../validation'"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record.update(group="../validation"))


if __name__ == "__main__":
    running.alone()
