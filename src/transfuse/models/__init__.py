"""Models as assembly lists over `transfuse.nn`."""
