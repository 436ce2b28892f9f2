"""What goes wrong through the user's input, told in one line."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; anything else is a defect and keeps its traceback.
    """
