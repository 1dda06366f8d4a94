"""clipdistill."""
