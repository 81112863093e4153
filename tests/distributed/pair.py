"""A script in two processes that find each other: ranks 0 and 1 on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(script, out, *arguments, seconds=500):
    """What rank 0 of ``script OUT ARGUMENTS...`` has written to ``out``; the end of its log if that is nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in ("0", "1"):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **address, **ranks, "OMP_NUM_THREADS": "1"}
        with open(f"{out}.{rank}", "w") as log:
            command = [sys.executable, str(script), str(out), *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in processes:
            process.wait(timeout=seconds)
    finally:
        for process in processes:
            process.kill()
    assert out.exists(), Path(f"{out}.0").read_text()[-5000:]
    return json.loads(out.read_text())
