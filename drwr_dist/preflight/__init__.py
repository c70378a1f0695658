"""Checks before a cluster is used: its file, its hosts over ssh, and, once Ray runs, every node."""
