"""`python -m gsfields`."""

from gsfields.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
