"""Typed config: schema, composition, checks, derived plan and DeepSpeed dict. No torch here."""
