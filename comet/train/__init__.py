"""Training a student from the rows of a cache."""
