"""Text: files and data sets, documents, evaluation items to exclude, tokens, masked rows."""
