"""How good frozen features are: probes, neighbours, logistic regression."""
