"""What `test_support` has forked: says what it is, then does what its first word asks.

usage: forked.py exit|kill|raise|interrupted|wait [WORD...]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

if __name__ == "__main__":
    said = {
        "pid": os.getpid(),
        "argv": sys.argv,
        "folder": os.getcwd(),
        "mine": os.environ.get("MINE"),
        "is_forked": "torch" in sys.modules,
        "umask": os.umask(0),
        "stdin": sys.stdin.read(),
        "path": sys.path,
        "host": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
    }
    print(json.dumps(said), flush=True)
    match sys.argv[1]:
        case "exit":
            sys.exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGTERM)
        case "raise":
            raise ValueError("so it is")
        case "interrupted":
            raise KeyboardInterrupt
        case "wait":
            time.sleep(60)
