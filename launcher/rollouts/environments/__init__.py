"""Environments: code of the user's own that answers the model, which then speaks several times."""
