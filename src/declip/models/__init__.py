"""Models: the catalogue, weight files found and checked, checkpoints, conversion and export."""
