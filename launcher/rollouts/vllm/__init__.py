"""`rollout=vllm`: servers beside the ranks draw the answers.

The first rank and each server's keeper agree by files of an attempt's folder; rank 0 hands over
weights as files and asks over HTTP. What keeps the servers is `launcher.vllm`.
"""
