"""Typed config: schema, composition, checks, the derived plan and the DeepSpeed dict. No torch here."""
