"""The errors that end a run, by who has to act."""


class UserError(ValueError):
    """Something the user must change: a path, a key, a value, a data row.

    The message names the thing and says what to do. `python -m hpt_ray.main` prints it without a
    traceback and exits with code 2.
    """


class WaitExpired(RuntimeError):
    """A remote wait passed its limit. The message says who was waited for, how long and for what."""
