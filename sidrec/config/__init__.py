"""The recipe: one typed tree that holds all settings of a run."""

from sidrec.config.load import load as load
from sidrec.config.load import load_file as load_file
from sidrec.config.load import load_mapping as load_mapping
from sidrec.config.load import load_saved as load_saved
from sidrec.config.load import save as save
from sidrec.config.recipe import Recipe as Recipe
from sidrec.errors import ConfigError as ConfigError
