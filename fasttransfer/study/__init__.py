"""What is studied: choices, recipes, splits, the networks of the grid, and where all of it lies on disk."""
