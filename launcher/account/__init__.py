"""What somebody has in an account at OpenAI: taken out, and its jobs run again here.

`pull` reads an account, or any server with this API, into a folder; `replay` makes of the jobs in
such a folder those of a service's folder, and works until they have ended.
"""
