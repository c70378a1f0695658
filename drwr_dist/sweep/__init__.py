"""Sweeps: many training runs, planned, journalled, compared. `drwr_dist.tune` is the verb."""
