"""Runs a command; writes its seconds, its peak memory and its exit code to standard output as JSON.

A process starts with the peak of the one that it was forked from. So this one is small, and starts no other.
"""

import json
import os
import sys
from time import perf_counter

# Whatever the command writes goes to standard error.
output = [(os.POSIX_SPAWN_DUP2, 2, 1)]
started = perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=output)
_, status, usage = os.wait4(pid, 0)
seconds = perf_counter() - started
# Linux counts in KiB, macOS in bytes.
megabytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([seconds, megabytes, os.waitstatus_to_exitcode(status)]))
