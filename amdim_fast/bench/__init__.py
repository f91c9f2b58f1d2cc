"""Time and memory of the loss on this machine."""
