"""`fluxserve` and `python -m fluxserve`: the command line."""

import sys


def main() -> None:
    """The command line; Ctrl-C while it is still being imported ends it quietly too."""
    try:
        from fluxserve.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
