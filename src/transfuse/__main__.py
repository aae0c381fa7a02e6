"""`python -m transfuse` is the `transfuse` command."""

from transfuse.cli.main import run

if __name__ == "__main__":
    run()
