"""Tables and pictures of models and results."""
