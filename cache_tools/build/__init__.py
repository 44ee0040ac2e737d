"""Building a cache: text to token rows, rows through the teacher, shards to the store."""
