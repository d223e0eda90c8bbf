"""Calls a container must not be able to make. Prints the name of each that was not refused."""

import ctypes
import errno
import os
import platform
import socket

libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
buffer = ctypes.create_string_buffer(4096)
NEW_NAMESPACES = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000,
                  "uts": 0x4000000, "ipc": 0x8000000, "cgroup": 0x2000000}
# name, number on x86-64, number on aarch64, arguments
CALLS = [
    ("acct", 163, 89, (0,)),
    ("add_key", 248, 217, (b"user", b"x", b"x", 1, -3)),
    ("bpf", 321, 280, (5, buffer, 128)),
    ("chroot", 161, 51, (b"/tmp",)),
    ("clock_settime", 227, 112, (0, buffer)),
    ("clone3", 435, 435, (buffer, 64)),
    ("delete_module", 176, 106, (b"none", 0)),
    ("fanotify_init", 300, 262, (0, 0)),
    ("finit_module", 313, 273, (0, b"", 0)),
    ("fsopen", 430, 430, (b"tmpfs", 0)),
    ("init_module", 175, 105, (buffer, 4096, b"")),
    ("io_setup", 206, 0, (1, buffer)),
    ("io_uring_setup", 425, 425, (8, buffer)),
    ("kcmp", 312, 272, (1, 1, 0, 0, 0)),
    ("kexec_load", 246, 104, (0, 0, 0, 0)),
    ("keyctl", 250, 219, (0, -3, 0)),
    ("mount", 165, 40, (b"none", b"/tmp", b"tmpfs", 0, b"")),
    ("mount_setattr", 442, 442, (-100, b"/tmp", 0, buffer, 32)),
    ("move_mount", 429, 429, (-100, b"/proc", -100, b"/tmp", 0)),
    ("open_by_handle_at", 304, 265, (-100, buffer, 0)),
    ("open_tree", 428, 428, (-100, b"/", 1)),
    ("perf_event_open", 298, 241, (buffer, 0, -1, -1, 0)),
    ("pivot_root", 155, 41, (b"/tmp", b"/tmp")),
    ("process_vm_readv", 310, 270, (1, buffer, 1, buffer, 1, 0)),
    ("process_vm_writev", 311, 271, (1, buffer, 1, buffer, 1, 0)),
    ("ptrace", 101, 117, (16, 1, 0, 0)),
    ("quotactl", 179, 60, (0, 0, 0, 0)),
    ("reboot", 169, 142, (0, 0, 0, 0)),
    ("request_key", 249, 218, (b"user", b"x", 0, 0)),
    ("sethostname", 170, 161, (b"x", 1)),
    ("setns", 308, 268, (0, 0)),
    ("settimeofday", 164, 170, (buffer, 0)),
    ("swapon", 167, 224, (b"/tmp/x", 0)),
    ("syslog", 103, 116, (3, buffer, 100)),
    ("umount2", 166, 39, (b"/proc", 2)),
    ("userfaultfd", 323, 282, (0,)),
]
if not arm:
    CALLS += [("ioperm", 173, 0, (0, 1, 1)), ("iopl", 172, 0, (3,)), ("modify_ldt", 154, 0, (0, buffer, 16))]


def refused(number, arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return result == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS, errno.EACCES)


def check(name, was_refused):
    if not was_refused:
        print(name)


def socket_refused(*kind):
    try:
        socket.socket(*kind).close()
    except OSError:
        return True
    return False


for name, x86, aarch64, arguments in CALLS:
    check(name, refused(aarch64 if arm else x86, arguments))
for name, flag in NEW_NAMESPACES.items():
    check("unshare " + name, refused(97 if arm else 272, (flag,)))
    child = libc.syscall(220 if arm else 56, flag | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    check("clone " + name, child == -1)
for name, family in {"alg": 38, "bluetooth": 31, "can": 29, "key": 15, "packet": 17, "vsock": 40, "xdp": 44}.items():
    check("socket " + name, socket_refused(family, socket.SOCK_RAW) and socket_refused(family, socket.SOCK_DGRAM))
check("socket raw", socket_refused(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
check("socket raw 6", socket_refused(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
print("done")
