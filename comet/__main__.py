"""`python -m comet train …` and `python -m comet eval …`, for torchrun and for environments without console scripts."""

import click

from comet.cli import train
from comet.eval_cli import evaluate_models

main = click.Group("comet", commands={"train": train, "eval": evaluate_models})
main(prog_name="python -m comet")
