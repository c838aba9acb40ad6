"""Images: from files to a prepared store to batches."""
