"""The teacher: loading it, and the signals kept of one forward pass. The only part that runs a large model."""
