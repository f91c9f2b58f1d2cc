"""Plain PyTorch mathematics: the judge of every kernel and the baseline of every benchmark."""
