"""Can this machine train, and is a recipe ready to be trained on it?"""
