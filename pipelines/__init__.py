"""Images in: files -> store -> batches."""
