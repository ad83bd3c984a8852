"""Recipes: the settings of published results, one TOML file each.

A recipe has a section for each of the configurations :class:`trajmatch.experts.ExpertConfig`,
:class:`trajmatch.distill.DistillConfig` and :class:`trajmatch.evaluate.EvalConfig`, with the fields
that are not the defaults, and says where they come from and what was published.
"""

from trajmatch.recipes.recipe import Recipe, find_recipe, load_recipe, recipe_names

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_names"]
