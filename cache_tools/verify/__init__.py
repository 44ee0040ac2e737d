"""Verification of a cache: files, values, and a rerun of the teacher."""
