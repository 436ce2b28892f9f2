"""The command line: `jmp-ds VERB`. One small module per group of verbs; heavy imports happen inside the verbs."""


def main() -> None:
    """Entry point of the `jmp-ds` program."""
    from jmp_ds.cli.app import app

    app()
