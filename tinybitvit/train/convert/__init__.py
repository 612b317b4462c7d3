"""From a trained network to one of few bits: recipes, their stages and objectives, and rounding layer by layer."""
