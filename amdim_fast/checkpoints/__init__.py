"""Files of weights: checkpoints and exports, read without running code."""
