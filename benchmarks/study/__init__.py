"""Studies: variants of recipes, trained over several seeds, compared with intervals."""
