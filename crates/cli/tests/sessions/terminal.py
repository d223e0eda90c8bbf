"""Works in a session as a person at a terminal does, and says on the last line how that went.

usage: terminal.py STEPS COMMAND...

STEPS is JSON: a list of ["wait", TEXT], ["type", TEXT] and ["size", ROWS, COLUMNS]. The terminal has
33 rows and 101 columns at first. Everything it shows goes to standard output. The exit code is the
command's, 128 and the signal for one that was killed, 99 when a text did not come in time. A terminal
that is not left as it was found is told with 98.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time

LIMIT = 30.0


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def main():
    steps, command = json.loads(sys.argv[1]), sys.argv[2:]
    master, slave = pty.openpty()
    resize(master, 33, 101)
    before = termios.tcgetattr(slave)
    child = os.fork()
    if child == 0:
        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(slave, fd)
        os.execv(command[0], command)
    seen, shown = b"", b""
    status = None

    def more(wait):
        nonlocal seen, shown
        ready, _, _ = select.select([master], [], [], wait)
        if ready:
            data = os.read(master, 65536)
            seen += data
            shown += data
        return bool(ready)

    def finish(code):
        sys.stdout.buffer.write(shown)
        sys.stdout.flush()
        sys.exit(code)

    for step in steps:
        if step[0] == "type":
            os.write(master, step[1].encode())
        elif step[0] == "size":
            resize(master, step[1], step[2])
        else:
            wanted, until = step[1].encode(), time.monotonic() + LIMIT
            while wanted not in seen:
                if time.monotonic() > until:
                    shown += b"\n[no " + wanted + b"]\n"
                    os.kill(child, 9)
                    finish(99)
                more(0.05)
            seen = seen.split(wanted, 1)[1]
    until = time.monotonic() + LIMIT
    while status is None:
        if time.monotonic() > until:
            shown += b"\n[no end]\n"
            os.kill(child, 9)
            finish(99)
        more(0.02)
        pid, ended = os.waitpid(child, os.WNOHANG)
        if pid:
            status = ended
    while more(0):
        pass
    if termios.tcgetattr(slave) != before:
        finish(98)
    if os.WIFSIGNALED(status):
        finish(128 + os.WTERMSIG(status))
    finish(os.WEXITSTATUS(status))


main()
