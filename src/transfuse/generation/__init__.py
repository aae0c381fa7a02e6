"""From a model and source ids to sequences: greedy, sampling and beam search over cached steps."""
