"""`python -m jmp_ds.cli VERB`."""

from jmp_ds.cli import main

if __name__ == "__main__":
    main()
