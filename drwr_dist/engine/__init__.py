"""Training on Ray: the loop of a worker, its state and checkpoints, the driver."""
