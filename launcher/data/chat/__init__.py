"""From a conversation to its text by a chat template, and to what of it is learned."""
