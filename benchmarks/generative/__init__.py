"""Generative retrieval with semantic ids: how well a catalog's SIDs can be predicted from what a user liked before."""
