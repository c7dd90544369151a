"""`python -m stylora` is `stylora`."""

from stylora.cli import main

if __name__ == "__main__":
    main()
