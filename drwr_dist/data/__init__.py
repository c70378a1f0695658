"""Datasets: sample schema, index, plan, stream, writer."""
