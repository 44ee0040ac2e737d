"""comet-export: a model as files that run without torch."""

from pathlib import Path

import click

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.terminal import one_line_errors, quiet_libraries

SECTIONS = {"What": ("model", "format", "int8", "output")}
EXAMPLES = (
    "comet-export kin-student                   a student of comet-train → kin-student-onnx",
    "comet-export kin-sentiment --int8          a model of comet-eval --output → kin-sentiment-onnx-int8",
    "comet-export kin-sentiment --output phone",
)


@click.command(
    cls=GroupedHelp,
    sections=SECTIONS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", expose_value=False, help="What to write.")
@click.option(
    "--int8",
    is_flag=True,
    help="Weights in 8 bits: a quarter of the size (half, of a masked LM), and a little less exact.",
)
@click.option("--output", type=click.Path(path_type=Path),
              help="Folder to make.  [default: ./MODEL-onnx, or ./MODEL-onnx-int8]")  # fmt: skip
@one_line_errors
def export_model(model: Path, int8: bool, output: Path | None) -> None:
    """Export MODEL, a folder that comet-train or `comet-eval --output` left, to run with onnxruntime alone.

    The exported model is run on real text and compared with torch before it gets its name. README.md in it says how
    to use it.
    """
    from comet.export.export import ExportSettings, export

    quiet_libraries()
    export(ExportSettings(model, int8=int8, output=output), say=click.echo)


if __name__ == "__main__":
    export_model()
