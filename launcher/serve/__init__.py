"""The OpenAI-compatible fine-tuning service in front of the launch back ends."""
