"""Takes all a container can get of what the kernel hands out, or uses one of each. The arguments are `take` or `use` and
what of it. Says what could not be used, then `done`; who takes says `ready` and keeps it."""

import ctypes
import os
import platform
import resource
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
numbers = {"sigqueue": 138, "timer": 107, "queue": 180, "inotify": 26}
if platform.machine() != "aarch64":
    numbers = {"sigqueue": 129, "timer": 222, "queue": 240, "inotify": 294}
REAL_TIME = 34
# More than the machine has for anybody.
MOST = 200_000
made = 0


class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("flags", "messages", "bytes", "now", "a", "b", "c", "d")]


def call(name, *arguments):
    return libc.syscall(numbers[name], *arguments) >= 0


def queue_signal():
    info = ctypes.create_string_buffer(128)
    ctypes.c_int.from_buffer(info, 0).value = REAL_TIME
    ctypes.c_int.from_buffer(info, 8).value = -1
    return call("sigqueue", os.getpid(), REAL_TIME, info)


def make_timer():
    return call("timer", 1, None, ctypes.byref(ctypes.c_void_p()))


def make_queue():
    global made
    made += 1
    attributes = Attributes(0, 10, 8192)
    name = b"longshore-%d-%d" % (os.getpid(), made)
    is_made = call("queue", name, os.O_CREAT | os.O_RDWR, 0o600, ctypes.byref(attributes))
    if is_made and sys.argv[1] == "use":
        libc.syscall(numbers["queue"] + 1, name)
    return is_made


def watch():
    return call("inotify", 0)


def open_terminal():
    try:
        return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY) >= 0
    except OSError:
        return False


TAKE = {"signals": queue_signal, "queues": make_queue, "watches": watch, "terminals": open_terminal}
USE = TAKE | {"signals": make_timer}

signal.pthread_sigmask(signal.SIG_BLOCK, [REAL_TIME])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for what in sys.argv[2:]:
    if sys.argv[1] == "use":
        if not USE[what]():
            print(what, os.strerror(ctypes.get_errno()))
    else:
        count = 0
        while count < MOST and TAKE[what]():
            count += 1
        print(what, count, end=" ")
print("ready" if sys.argv[1] == "take" else "done", flush=True)
if sys.argv[1] == "take":
    time.sleep(1000)
