"""Pictures in: files -> store -> batches."""
