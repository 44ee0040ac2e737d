"""Data sets as they lie on the hub: Parquet files, and the card that says which belong to what."""

import io

import pyarrow
import pyarrow.parquet


def parquet(texts: list[str], column: str = "text") -> bytes:
    """Several row groups, as real files have."""
    file = io.BytesIO()
    table = pyarrow.table({"id": [str(i) for i in range(len(texts))], column: texts})
    pyarrow.parquet.write_table(table, file, row_group_size=50)
    return file.getvalue()


def card(licence: str, configs: dict[str, dict[str, str]]) -> bytes:
    """A README.md that states a licence, and for each part of the data set the files of its splits."""
    lines = ["---", f"license: {licence}", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, pattern in splits.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    return "\n".join([*lines, "---", "# A corpus", ""]).encode()
