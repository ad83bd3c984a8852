"""Recipes: settings of published results, one TOML file each.

A recipe lists the non-default fields of :class:`trajmatch.experts.ExpertConfig`,
:class:`trajmatch.distill.DistillConfig` and :class:`trajmatch.evaluate.EvalConfig`, their sources
and the published accuracy.
"""

from trajmatch.recipes.recipe import Recipe, find_recipe, load_recipe, recipe_names

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_names"]
