"""The `transfuse` command, written only with the public names of `transfuse`."""
