"""Classifiers: from labelled texts to a head over classes, its threshold and its export."""
