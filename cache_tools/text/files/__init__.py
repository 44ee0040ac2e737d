"""Text files: documents of a corpus, items of evaluation files."""
