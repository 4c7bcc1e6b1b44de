"""Servers of vLLM: started, kept alive, asked and ended, whatever they answer for.

A keeper (`keeper`) starts its server, again where it dies, and ends with whoever started it; who
wants the server and its keeper agree by files of a folder (`places`). The folder `inside` is what
runs in vLLM's own process. Standard library only.
"""
