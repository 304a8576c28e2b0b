"""`python -m fluxserve`: the command line."""

from fluxserve.cli import main

if __name__ == "__main__":
    main()
