"""Where shards come from: one file a source, and what they share: rendering, hulls, frames, splits."""
