"""Files that systems leave in folders on their own. They are neither content nor damage, wherever they lie."""

from fnmatch import fnmatchcase

LEFT_BY_SYSTEMS = (
    *(".DS_Store", "._*", "Icon\r", ".AppleDouble", ".LSOverride", ".localized", "__MACOSX"),  # macOS, and its archives
    *(".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems", ".apdisk", ".VolumeIcon.icns"),  # its disks
    *("desktop.ini", "Desktop.ini", "Thumbs.db", "thumbs.db", "ehthumbs.db", "Thumbs.db:encryptable"),  # Windows
    *("$RECYCLE.BIN", "System Volume Information"),
    *("lost+found", ".directory", ".Trash-*", ".nfs*", ".fuse_hidden*"),  # Linux and its desktops
    *("@eaDir", "#recycle", ".@__thumb", ".snapshot"),  # network storage
    *(".stfolder", ".stignore", ".stversions", ".sync", ".dropbox", ".dropbox.attr"),  # programs that synchronise
    *(".*.swp", ".*.swo", ".~lock.*#"),  # editors at work
)
"""Patterns of names, of files and of folders."""

MOST_NAMED = 5


def is_left_by_system(name: str) -> bool:
    """Return whether a file or folder of this name is a system's own."""
    return any(fnmatchcase(name, pattern) for pattern in LEFT_BY_SYSTEMS)


def named(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
