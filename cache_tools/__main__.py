"""`python -m cache_tools`, for torchrun and for environments without console scripts."""

from cache_tools.cli.main import main

main(prog_name="comet-cache")
