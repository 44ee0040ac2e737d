"""What a training reports: an analysis of the student, a page, a summary, a model card."""
