"""`python -m tests.fuzz`: many seeds over all cores, or one again."""

from tests.fuzz.main import main

if __name__ == "__main__":
    main()
