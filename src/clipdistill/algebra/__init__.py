"""What a recipe means: nodes, arrows, terms and their mathematics; no files but recipes, no models, no images."""
