"""The visible loop, losses, schedules, crash-safe checkpoints and the run that ties them together."""
