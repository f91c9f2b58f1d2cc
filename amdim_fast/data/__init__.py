"""Data sets: files, folders and packed stores, read into batches."""
