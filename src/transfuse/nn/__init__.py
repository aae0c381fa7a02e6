"""Layers: attention, positions, feed-forward, blocks, embeddings and the key/value cache."""
