"""The commands of comet-cache, one module each."""
