"""comet-export: write a model as files that run without torch."""

from pathlib import Path

import click

from cache_tools.cli.help import GroupedHelp, version_option
from cache_tools.cli.terminal import one_line_errors, quiet_libraries

SECTIONS = {"What": ("model", "format", "int8", "output")}
EXAMPLES = (
    "comet-export kin-student                   a student from comet-train → kin-student-onnx",
    "comet-export kin-sentiment --int8          a model from comet-eval --output → kin-sentiment-onnx-int8",
    "comet-export kin-sentiment --output phone",
)


@click.command(
    cls=GroupedHelp,
    sections=SECTIONS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", expose_value=False, help="File format.")
@click.option(
    "--int8",
    is_flag=True,
    help="8-bit weights: a quarter of the size (half for a masked LM), slightly less exact.",
)
@click.option("--output", type=click.Path(path_type=Path),
              help="Folder to create.  [default: ./MODEL-onnx, or ./MODEL-onnx-int8]")  # fmt: skip
@version_option
@one_line_errors
def export_model(model: Path, int8: bool, output: Path | None) -> None:
    """Export MODEL, a folder written by comet-train or `comet-eval --output`, to run with onnxruntime alone.

    The exported model is compared with torch on real text. Its README.md shows how to use it.
    """
    from comet.export.settings import ExportSettings

    settings = ExportSettings(model, int8=int8, output=output)

    quiet_libraries()
    from comet.export.export import export  # with torch, for which no mistake above should wait

    export(settings, say=click.echo)


if __name__ == "__main__":
    export_model()
