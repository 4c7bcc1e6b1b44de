"""Metrics of named classes, one a file; rows of `ClassifyConfig.own_metrics` name them."""
