"""`sidrec doctor`: can this machine train, and is a recipe ready to train on it?"""
