"""The teacher: loading it, and what is kept of one forward pass. The only part that runs a large model."""
