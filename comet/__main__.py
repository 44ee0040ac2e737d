"""`python -m comet train …`, for torchrun and for environments without console scripts."""

import click

from comet.cli import train

main = click.Group("comet", commands={"train": train})
main(prog_name="python -m comet")
