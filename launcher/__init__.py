"""Fine-tuning launcher for language models: one typed config, DeepSpeed ZeRO, any machine."""

__version__ = "0.1.0"
