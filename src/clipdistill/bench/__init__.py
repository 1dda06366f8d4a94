"""What is measured: one file per claim, always as a ratio of two ways timed in turn in one run."""
