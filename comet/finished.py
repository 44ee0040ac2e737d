"""Recognise a training that has already finished, so that there is nothing to resume."""

import tomllib
from collections.abc import Sequence

from cache_tools.cli.config import as_toml
from comet.paths import checkpoints_path, options_path
from comet.settings import StudentConfig, as_options


def has_finished(config: StudentConfig, caches: Sequence[str]) -> bool:
    """Return whether the student in `config.output` is that of this training, and no checkpoint is left.

    Compares the options with `OUTPUT.toml`; an option on `auto` fits whatever was chosen.
    """
    if not config.output.name or checkpoints_path(config.output).exists():
        return False
    try:
        used = tomllib.loads(options_path(config.output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    given = tomllib.loads(as_toml(as_options(config, caches)))
    differing = {name for name in used | given if used.get(name) != given.get(name)}
    automatic = {name for name in ("student", "vocabulary", "init", "dtype") if given[name] == "auto"}
    automatic |= {name for name in ("epochs", "learning-rate") if name not in given}
    return differing <= automatic | {"save-minutes"}
