"""Readers, tokenizers and batches: from files and columns to masked tensors."""
