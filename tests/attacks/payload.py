"""What a pickle of an attacker does when it is loaded: it leaves a file, which the tests look for."""

import os
from pathlib import Path


class Payload:
    """Loading its pickle makes the file `marker` in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder / "marker"),)
