"""From windows and a recipe to a trained network."""
