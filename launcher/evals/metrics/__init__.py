"""One metric a file; rows of `launcher.config.schema.variants.METRICS` name them."""
