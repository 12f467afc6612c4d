"""The one exception that a user can cause, and the hint that it gives about a misspelt name."""

from difflib import get_close_matches


class UserError(Exception):
    """Input from outside (settings, files, a hub) that cannot be used; the message is one line and names the remedy."""


def nearest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the nearest right one, and all of them."""
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(sorted(known))})"
