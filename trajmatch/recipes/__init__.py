"""Recipes: settings of published results with their sources and accuracy, one TOML file each."""

from trajmatch.recipes.recipe import Recipe, find_recipe, load_recipe, recipe_names

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_names"]
