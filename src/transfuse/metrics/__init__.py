"""Corpus scores of generated text, each with the signature that makes it comparable."""
