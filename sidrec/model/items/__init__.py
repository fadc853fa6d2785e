"""Item representations: what a ranker sees of target and history, from the tables of the unique items."""
