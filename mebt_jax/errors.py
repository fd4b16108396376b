"""The one exception whose message is written for the person at the keyboard."""


class UserError(Exception):
    """Something the user can fix; `main` prints the message alone, without a traceback, and exits
    with status 2.

    The message is one sentence that names the thing, where it is, and the fix.
    """
