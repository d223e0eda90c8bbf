"""Tries to get out of a container, and prints what worked. It runs as the container's root."""

import ctypes
import glob
import os
import socket
import stat

libc = ctypes.CDLL(None, use_errno=True)
worked = []


def attempt(name, action):
    """An attempt works when it neither raises nor gives anything false."""
    try:
        if action():
            worked.append(name)
    except OSError:
        pass


def call(name, *arguments):
    return lambda: getattr(libc, name)(*arguments) >= 0


def syscall(number, *arguments):
    return lambda: libc.syscall(number, *arguments) >= 0


def write(path, text="1"):
    def action():
        with open(path, "w") as file:
            return file.write(text)
    return action


def node(kind, major, minor):
    def action():
        os.mknod("/tmp/node", 0o600 | kind, os.makedev(major, minor))
        os.close(os.open("/tmp/node", os.O_RDONLY))
        return True
    return action


def capabilities():
    """Whether the process may do what only roots of machines may."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    usual = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 10))
    return any(int(fields[name], 16) & ~usual for name in ("CapEff", "CapPrm", "CapBnd")) or (
        fields["NoNewPrivs"].strip() != "1" or fields["Seccomp"].strip() != "2")


def talk(path):
    def action():
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(2)
        stream.connect(path)
        stream.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        return stream.recv(1)
    return action


def foreign_processes():
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    names = [open(f"/proc/{pid}/comm").read().strip() for pid in pids]
    return any(name in ("dockerd", "containerd", "systemd", "docker-driver") for name in names)


attempt("core pattern", write("/proc/sys/kernel/core_pattern", "|/tmp/x"))
attempt("sysrq", write("/proc/sysrq-trigger", "h"))
attempt("modprobe path", write("/proc/sys/kernel/modprobe", "/tmp/x"))
attempt("kernel memory", lambda: open("/proc/kcore", "rb").read(1))
attempt("memory device", node(stat.S_IFCHR, 1, 1))
attempt("disk device", node(stat.S_IFBLK, 254, 0))
attempt("another disk device", node(stat.S_IFBLK, 8, 0))
for agent in glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True):
    attempt(agent, write(agent, "/tmp/x"))
for limit in glob.glob("/sys/fs/cgroup/*/memory.limit_in_bytes") + glob.glob("/sys/fs/cgroup/memory.max"):
    attempt(limit, write(limit, "-1" if "limit" in limit else "max"))
attempt("uevent helper", write("/sys/kernel/uevent_helper", "/tmp/x"))
attempt("mount", call("mount", b"none", b"/mnt", b"tmpfs", 0, None))
attempt("remount", call("mount", None, b"/usr", None, 32 | 4096, None))
attempt("unmount", call("umount2", b"/.longshore/init", 2))
attempt("user namespace", call("unshare", 0x10000000))
attempt("mount namespace", call("unshare", 0x20000))
attempt("join namespace", lambda: libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0) >= 0)
attempt("trace the first process", lambda: libc.ptrace(16, 1, 0, 0) >= 0)
attempt("memory of the first process", lambda: os.open("/proc/1/mem", os.O_RDWR) >= 0)
attempt("descriptors of the first process", lambda: os.readlink("/proc/1/fd/0"))
attempt("kill the first process", lambda: os.kill(1, 9) or False)
attempt("program of the first process", write("/.longshore/init", "x"))
attempt("replace that program", lambda: os.replace("/.longshore/init", "/tmp/init") is None)
attempt("programs of the machine", write("/usr/bin/true", "x"))
attempt("start without limits", talk("/.longshore/run/init"))
attempt("daemon", talk("/var/run/docker.sock"))
attempt("daemon", talk("/run/docker.sock"))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("network settings", write("/proc/sys/net/ipv4/ip_forward"))
attempt("host name", lambda: socket.sethostname("x") is None)
attempt("clock", lambda: os.system("date -s 2000-01-01 >/dev/null 2>&1") == 0)
attempt("kernel log", lambda: libc.klogctl(3, ctypes.create_string_buffer(8), 8) > 0)
attempt("open by handle", syscall(304, -100, ctypes.create_string_buffer(64), 0))
attempt("kernel module", syscall(175, b"x", 1, b""))
attempt("kexec", syscall(246, 0, 0, None, 0))
attempt("bpf", syscall(321, 0, ctypes.create_string_buffer(128), 128))
attempt("performance events", syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0))
attempt("keys", syscall(250, 0, -3, 1))
attempt("rights", capabilities)
attempt("other processes", foreign_processes)
attempt("inherited descriptors", lambda: [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 3])
attempt("passwords", lambda: open("/etc/shadow").read())
attempt("set-id programs", lambda: os.system("test $(su -c 'id -u' 2>/dev/null || echo no) = 0") == 0)
print("worked:", ", ".join(worked) or "nothing")
