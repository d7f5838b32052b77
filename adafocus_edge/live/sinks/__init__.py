"""Where a live run's results go; each sink stands alone."""
