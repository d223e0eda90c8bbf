//! Ways out of a container that others found before us. None may work where a driver isolates.

use super::{Bench, Failure, Verdict, ensure};
use crate::driver::{Ability, Isolation, Outcome};
use crate::spec::{ProcessId, ProcessSpec, User};

/// Calls of the system that must be refused, as a program.
const CALLS: &str = include_str!("escapes.py");
/// Powers over the machine, as bits: `DAC_READ_SEARCH`, `LINUX_IMMUTABLE`, `NET_ADMIN`, `NET_RAW`,
/// `IPC_LOCK`, `SYS_MODULE`, `SYS_RAWIO`, `SYS_CHROOT`, `SYS_PTRACE`, `SYS_PACCT`, `SYS_ADMIN`,
/// `SYS_BOOT`, `SYS_NICE`, `SYS_RESOURCE`, `SYS_TIME`, `SYS_TTY_CONFIG`, `MKNOD`, `LEASE`, the audit
/// and `MAC` ones, `SYSLOG`, `WAKE_ALARM`, `BLOCK_SUSPEND`, `PERFMON`, `BPF`, `CHECKPOINT_RESTORE`.
const POWERS: u64 = 0x01ff_7fff_7204;

const BE_ROOT: &str = "be the machine's root";
/// What a container tries, as text of its shell; it must print nothing but `done`.
const ATTEMPTS: [(&str, &str); 21] = [
    ("gain rights by set-id programs", "grep -q '^NoNewPrivs:.1$' /proc/self/status || echo no"),
    ("call what it wants", "grep -q '^Seccomp:.2$' /proc/self/status || echo no filter"),
    (
        "mount",
        "mkdir -p /tmp/m; for args in '-t tmpfs none' '-t proc none' '--bind /proc' \
         '-t cgroup none' '-t cgroup2 none' '-t sysfs none' '-t devtmpfs none'; do \
         busybox mount $args /tmp/m 2>/dev/null && echo mounted $args; done",
    ),
    (
        "make what is read-only writable",
        "for at in /proc/sys /sys /sys/fs/cgroup /proc/sysrq-trigger; do \
         busybox mount -o remount,rw $at 2>/dev/null && echo $at; \
         busybox umount -l $at 2>/dev/null && echo gone $at; done",
    ),
    (
        "make devices",
        "for node in 'b 254 0' 'b 8 0' 'c 1 1' 'c 1 11' 'c 10 229' 'b 7 0'; do \
         busybox mknod /tmp/node $node 2>/dev/null && (: < /tmp/node) 2>/dev/null && echo $node; \
         rm -f /tmp/node; done",
    ),
    (
        "use devices",
        "find /dev -type b; find /dev -type c | grep -vE \
         '^/dev/(null|zero|full|random|urandom|tty|console|ptmx|pts/(ptmx|[0-9]+))$'",
    ),
    (
        "change the kernel's settings",
        "for at in kernel/core_pattern kernel/modprobe kernel/hotplug kernel/panic vm/overcommit_memory \
         fs/binfmt_misc/register net/ipv4/ip_forward kernel/randomize_va_space kernel/hostname; do \
         (echo x > /proc/sys/$at) 2>/dev/null && echo $at; done",
    ),
    (
        "press keys of the machine",
        "for at in /proc/sysrq-trigger /sys/kernel/uevent_helper /proc/irq/default_smp_affinity \
         /sys/power/state /sys/kernel/mm/transparent_hugepage/enabled; do \
         (echo h > $at) 2>/dev/null && echo $at; done",
    ),
    (
        "leave its control group",
        "for at in $(find /sys/fs/cgroup -name cgroup.procs -o -name tasks -o -name release_agent \
         -o -name notify_on_release -o -name memory.limit_in_bytes -o -name memory.max \
         -o -name pids.max -o -name devices.allow 2>/dev/null); do \
         (echo 1 > $at) 2>/dev/null && echo $at; done; \
         for at in $(find /sys/fs/cgroup -type d 2>/dev/null); do \
         mkdir $at/new 2>/dev/null && echo $at; done",
    ),
    (
        "see processes of the machine",
        "count=$(ls -d /proc/[0-9]* | wc -l); test $count -lt 12 || echo $count processes; \
         for pid in /proc/[0-9]*; do tr '\\0' ' ' 2>/dev/null < $pid/cmdline; done | \
         grep -E '[s]ystemd|[d]ockerd|[c]ontainerd|[l]ongshore-supervisor'",
    ),
    (
        "go through its first process",
        "ls -A /proc/1/root/ 2>/dev/null | sort > /tmp/a; ls -A / | sort > /tmp/b; \
         test -s /tmp/a && ! cmp -s /tmp/a /tmp/b && echo another root; \
         (echo x >> /proc/1/exe) 2>/dev/null && echo wrote its program; \
         (echo x > /proc/1/mem) 2>/dev/null && echo wrote its memory; \
         for fd in /proc/1/fd/*; do link=$(readlink $fd 2>/dev/null); \
         case \"$link\" in ''|/dev/null|pipe:*) ;; *) echo $fd $link;; esac; done",
    ),
    (
        "use what was left open",
        "for fd in /proc/self/fd/*; do link=$(readlink $fd 2>/dev/null); \
         case \"$link\" in ''|/dev/null|pipe:*|/proc/*/fd) ;; *) echo $fd $link;; esac; done",
    ),
    (
        "find the machine's secrets",
        "for at in /var/run/docker.sock /run/docker.sock /run/containerd /run/shore /run/runc \
         /etc/shadow /etc/ssl/private /etc/ssh /root/.ssh /root/.cargo /boot /var/lib/docker; do \
         test -e $at && echo $at; done; test -z \"$(ls -A /root 2>/dev/null)\" || echo /root",
    ),
    (
        "read about the machine",
        "for at in /proc/kcore /proc/keys /proc/timer_list /proc/kmsg /proc/sched_debug; do \
         test \"$(head -c 1 $at 2>/dev/null | wc -c)\" -eq 0 || echo $at; done; \
         for at in /sys/firmware /proc/scsi /proc/acpi; do \
         test -z \"$(ls -A $at 2>/dev/null)\" || echo $at; done; \
         busybox dmesg 2>/dev/null | head -n 1",
    ),
    (
        "change its network",
        "for args in 'link add x type dummy' 'addr add 10.1.2.3/8 dev eth0' 'link set eth0 down' \
         'route add 1.2.3.4 dev eth0' 'link set lo down' 'route del default'; do \
         busybox ip $args 2>/dev/null && echo $args; done",
    ),
    ("take another name", "busybox hostname other 2>/dev/null && echo renamed"),
    (
        "load modules",
        "echo x > /tmp/x.ko; busybox insmod /tmp/x.ko 2>/dev/null && echo loaded; \
         busybox modprobe dummy 2>/dev/null && echo loaded dummy",
    ),
    (
        "make namespaces",
        "for kind in -r -m -n -p -u -i; do \
         busybox unshare $kind true 2>/dev/null && echo unshare $kind; done",
    ),
    (BE_ROOT, "grep -q '^ *0 *0 *4294967295' /proc/self/uid_map && echo it is"),
    (
        "raise its limits",
        "ulimit -H -n 10000000 2>/dev/null && echo files; \
         (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo mortality; \
         busybox nice -n -5 true 2>/dev/null && test \"$(busybox nice -n -5 nice)\" = -5 && echo nice",
    ),
    (
        "reach a terminal of the machine",
        "for at in /dev/tty /dev/console; do test -c $at && (echo x > $at) 2>/dev/null && echo $at; done",
    ),
];

fn isolates(bench: &Bench) -> bool {
    bench.driver.capabilities().isolation != Isolation::None
}

pub(super) async fn attempts_from_a_shell_fail(bench: Bench) -> Verdict {
    if !isolates(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let mut worked = Vec::new();
    let possible =
        ATTEMPTS.into_iter().filter(|(what, _)| *what != BE_ROOT || !bench.shares_users());
    for (number, (what, text)) in possible.enumerate() {
        let (id, text) = (format!("p{number}"), format!("{text}; echo done"));
        let seen = bench.output(&handle, &id, &text).await?.text();
        if seen != "done\n" {
            worked.push(format!("{what}: {seen:?}"));
        }
    }
    // And it still works.
    bench.output(&handle, "after", "true").await?;
    ensure!(worked.is_empty(), "{}", worked.join("\n"));
    Ok(())
}

pub(super) async fn dangerous_calls_are_refused(bench: Bench) -> Verdict {
    if !isolates(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    bench.needs_python(&handle).await?;
    for (name, user) in [("root", 0), ("user", 1000)] {
        let mut spec = ProcessSpec::new(ProcessId::new(name)?, ["python3", "-c", CALLS]);
        spec.user = Some(User { uid: user, gid: user });
        let (exit, written) = bench.run(&handle, spec).await?;
        let told = String::from_utf8_lossy(&written.stderr);
        let seen = written.text();
        ensure!(exit.success() && seen == "done\n", "as {name}: {exit:?} {seen} {told}");
    }
    Ok(())
}

pub(super) async fn powers_over_the_machine_are_dropped(bench: Bench) -> Verdict {
    if !isolates(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let seen = bench.output(&handle, "p", "grep ^Cap /proc/self/status").await?.text();
    for line in seen.lines() {
        let (name, bits) = line.split_once(":\t").unwrap_or((line, ""));
        let bits = u64::from_str_radix(bits, 16).map_err(|_| Failure::new(line.to_owned()))?;
        ensure!(bits & POWERS == 0, "{name} has {:x}", bits & POWERS);
    }
    ensure!(seen.lines().count() == 5, "{seen}");
    Ok(())
}

pub(super) async fn set_id_programs_give_nothing(bench: Bench) -> Verdict {
    if !isolates(&bench) || !bench.driver.capabilities().can(Ability::Users) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let text = "cp $(command -v busybox) /home/busybox && chmod 6755 /home/busybox";
    bench.output(&handle, "setup", text).await?;
    let mut spec = ProcessSpec::new(ProcessId::new("p")?, ["/home/busybox", "id", "-u"]);
    spec.user = Some(User { uid: 1000, gid: 1000 });
    let (_, written) = bench.run(&handle, spec).await?;
    ensure!(written.text() == "1000\n", "{}", written.text());
    Ok(())
}

pub(super) async fn directories_lead_nowhere_else(bench: Bench) -> Verdict {
    if !isolates(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    // A runtime that leaves a descriptor open could start a process outside through it.
    for number in 3..12 {
        let id = ProcessId::new(format!("p{number}"))?;
        let mut spec = ProcessSpec::new(id.clone(), ["/bin/sh", "-c", "ls -d ../../../../boot"]);
        spec.dir = Some(format!("/proc/self/fd/{number}"));
        if bench.driver.start(&handle, spec).await.is_ok() {
            let exit = bench.exit(&handle, &id).await?;
            ensure!(exit.outcome != Outcome::Code(0), "descriptor {number} leads out");
        }
    }
    let text = "rm -rf /tmp/way; ln -s /proc/1/root/../../.. /tmp/way; echo done";
    bench.output(&handle, "link", text).await?;
    let tar = super::tars::Tar::new().file("made", b"x")?.done()?;
    let result = bench.unpack(&handle, "/tmp/way/x", tar, crate::archive::Limits::default()).await;
    ensure!(result.is_err(), "copied through a link: {result:?}");
    Ok(())
}
