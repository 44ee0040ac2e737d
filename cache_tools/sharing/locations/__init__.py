"""Where a cache can lie: a folder of this machine, or a URL."""
