"""Image sets, read into batches."""
