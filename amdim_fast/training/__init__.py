"""Pre-training: recipes, and runs that take them step by step."""
