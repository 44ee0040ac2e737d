"""`python -m comet train …`, `… eval …` and `… export …`, for torchrun and for environments without console scripts."""

import click

from comet.cli import train
from comet.eval_cli import evaluate_models
from comet.export.cli import export_model

main = click.Group("comet", commands={"train": train, "eval": evaluate_models, "export": export_model})
main(prog_name="python -m comet")
