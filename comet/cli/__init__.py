"""comet-train, comet-eval and comet-export."""
