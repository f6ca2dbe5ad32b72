"""All tasks of the suite, in the order of their families."""

from mtpt.mixtures.suite import (
    arithmetic,
    codes,
    comparing,
    copying,
    dates,
    editing,
    grammar,
    kinds,
    logic,
    measures,
    reading,
    selection,
    spelling,
    unseen,
)
from mtpt.mixtures.suite.recipe import Recipe

FAMILIES = (
    copying,
    selection,
    kinds,
    reading,
    comparing,
    arithmetic,
    logic,
    dates,
    spelling,
    codes,
    measures,
    grammar,
    editing,
)
TRAINED: tuple[Recipe, ...] = tuple(task for family in FAMILIES for task in family.TASKS)
NEW: tuple[Recipe, ...] = unseen.TASKS
