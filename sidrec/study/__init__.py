"""Studies: variants of a recipe, trained with several seeds and compared with intervals."""
