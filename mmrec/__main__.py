"""`python -m mmrec`, and `accelerate launch -m mmrec train ...`."""

from mmrec.cli import main

if __name__ == "__main__":
    main()
