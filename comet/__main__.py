"""`python -m comet train …`, `… eval …` and `… export …`, for torchrun and for environments without console scripts."""

import click

from comet.cli.evaluate import evaluate_models
from comet.cli.export import export_model
from comet.cli.train import train

main = click.Group("comet", commands={"train": train, "eval": evaluate_models, "export": export_model})
main(prog_name="python -m comet")
