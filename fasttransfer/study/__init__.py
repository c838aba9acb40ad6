"""Studies: configuration, recipes, splits, the networks of the grid, records, and paths on disk."""
