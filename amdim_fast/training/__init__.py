"""Pre-training: recipes, runs, steps."""
