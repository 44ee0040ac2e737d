"""The cache on disk: its format, its ledger, writing and reading. Needs numpy, zarr and numcodecs only."""
