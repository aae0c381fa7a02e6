"""Fewer key/value heads for a trained model: which heads share, and what they share."""
