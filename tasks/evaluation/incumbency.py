"""Tells a store in which nothing ever reigned from one whose champion is gone.

A deleted version takes its alias with it, silently. Whoever then takes the missing alias for a first run promotes
whatever comes along. A store that cannot be asked is neither: it is an error, and nothing is judged.
"""

from typing import Literal

Incumbency = Literal["never", "reigning", "vanished"]


def find_incumbency(champion: bool, promotions: int) -> Incumbency:
    """Name the state of the champion's alias.

    Args:
        champion: the alias points at a version.
        promotions: how often one was promoted, by what outlives the deletion of versions.
    """
    if champion:
        return "reigning"
    return "vanished" if promotions else "never"
