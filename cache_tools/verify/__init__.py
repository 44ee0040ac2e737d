"""Verifying a cache: files, values, and the teacher run again."""
