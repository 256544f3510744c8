"""Tells a store in which nothing ever reigned from one whose champion is gone.

A deleted version takes its alias with it, silently. Whoever then takes the missing alias for a first run promotes
whatever comes along. A store that cannot be asked is neither: it is an error, and nothing is judged.
"""

from typing import Literal

ChampionState = Literal["none", "active", "lost"]


def champion_state(champion: bool, promotions: int) -> ChampionState:
    """Name the state of the champion's alias.

    Args:
        champion: the alias points at a version.
        promotions: how often one was promoted, by what outlives the deletion of versions.
    """
    if champion:
        return "active"
    return "lost" if promotions else "none"
