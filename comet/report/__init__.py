"""Reports on a training: an analysis of the student, a page, a summary, a model card."""
