"""Settings of an export that cannot be are refused before any work."""

from pathlib import Path

import pytest

from cache_tools.errors import CometError
from comet.export.settings import ExportSettings


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/x", r"--output .*file/x: cannot be created \(Not a directory\)"),
        ("kin.zarr/onnx", "--output .*: lies in the cache .*kin.zarr, which holds nothing but its own files"),
        ("x" * 300, "--output .*: expected a name of at most 200 bytes"),
    ],
)
def test_a_place_that_cannot_be_is_found_before_any_work(output: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "kin.zarr" / "ledger").mkdir(parents=True)
    (tmp_path / "kin.zarr" / "ledger" / "seal.json").write_text("{}")
    with pytest.raises(CometError, match=message) as caught:
        ExportSettings(tmp_path, output=tmp_path / output)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("field", "value"), [("model", 5), ("output", ""), ("int8", "yes")])
def test_settings_of_other_types_are_named(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(CometError, match=f"{'MODEL' if field == 'model' else f'--{field}'} .*expected (a path|true)"):
        ExportSettings(**{"model": tmp_path, field: value})  # type: ignore[arg-type]
