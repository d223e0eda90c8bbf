//! Which system calls a container may make, in the form of a runtime's configuration and as the
//! program the kernel runs. Both say the same: one is for the first process and for sessions, the
//! other for the processes supervisors start.

use serde_json::{Value, json};
use syscalls::Sysno;

/// The lists of names.
const LISTS: &str = include_str!("seccomp.txt");
/// Flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// Unix, IPv4, IPv6 and netlink sockets.
const SOCKET_FAMILIES: [u64; 4] = [1, 2, 10, 16];
/// The usual persona, a 32-bit one, and the question which it is.
const PERSONALITIES: [u64; 3] = [0, 8, 0xffff_ffff];
const NOT_PERMITTED: i32 = 1;
const NO_SUCH_CALL: i32 = 38;

/// The names below a heading.
fn list(heading: &str) -> Vec<&'static str> {
    let heading = format!("[{heading}]");
    let lines = LISTS.lines().skip_while(|line| *line != heading).skip(1);
    lines.take_while(|line| !line.starts_with('[')).flat_map(str::split_whitespace).collect()
}

/// The profile of every container.
pub(crate) fn profile() -> Value {
    let architecture =
        if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    let allow = |names: Value, arguments: Value| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": arguments});
    let refuse = |names: Value, errno: i32| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    let equals = |value: u64| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let mut calls = vec![
        allow(json!(list("allowed")), json!([])),
        refuse(json!(list("refused")), NOT_PERMITTED),
        // Its flags lie in memory where no filter sees them; everybody falls back to `clone`.
        refuse(json!(["clone3"]), NO_SUCH_CALL),
        allow(
            json!(["clone"]),
            json!([{"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]),
        ),
    ];
    calls.extend(SOCKET_FAMILIES.map(|family| allow(json!(["socket"]), equals(family))));
    calls.extend(PERSONALITIES.map(|persona| allow(json!(["personality"]), equals(persona))));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": NO_SUCH_CALL,
        "architectures": [architecture],
        "syscalls": calls,
    })
}

/// Where the kernel shows a filter the number of a call, the machine's kind and the arguments.
const NUMBER_AT: u32 = 0;
const MACHINE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// The lower half of a number comes first on every machine this is built for.
const HALF_BYTES: u32 = 4;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` of `linux/audit.h`.
const MACHINE: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// The program of the same profile.
pub(crate) fn filter() -> Vec<libc::sock_filter> {
    let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let mut program = Program::default();
    program.load(MACHINE_AT);
    program.unless(MACHINE, libc::SECCOMP_RET_KILL_PROCESS);
    program.load(NUMBER_AT);
    for (names, answer) in [("allowed", ALLOW), ("refused", refuse(NOT_PERMITTED))] {
        for number in list(names).into_iter().filter_map(number) {
            program.answer_if(number, answer);
        }
    }
    let equals = |value: u64| (u64::MAX, value);
    let by_first: [(&str, Vec<(u64, u64)>); 3] = [
        ("clone", vec![(NAMESPACE_FLAGS, 0)]),
        ("socket", SOCKET_FAMILIES.map(equals).to_vec()),
        ("personality", PERSONALITIES.map(equals).to_vec()),
    ];
    for (name, allowed) in by_first {
        if let Some(number) = number(name) {
            program.allow_by_first(number, &allowed);
        }
    }
    program.end(refuse(NO_SUCH_CALL));
    program.0
}

/// The number of a call on this machine, if it has it.
fn number(name: &str) -> Option<u32> {
    name.parse::<Sysno>().ok().map(|call| call.id().cast_unsigned())
}

/// The lower and the upper half.
fn halves(number: u64) -> [u32; 2] {
    [number, number >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or_default())
}

/// A filter that is being written. Between two calls, the number of the call asked for is loaded.
#[derive(Default)]
struct Program(Vec<libc::sock_filter>);

impl Program {
    fn add(&mut self, code: u32, k: u32, (jt, jf): (u8, u8)) {
        // The codes of `linux/bpf_common.h` are small.
        let code = u16::try_from(code).unwrap_or_default();
        self.0.push(libc::sock_filter { code, jt, jf, k });
    }

    fn load(&mut self, at: u32) {
        self.add(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, (0, 0));
    }

    /// Skips so many instructions when what is loaded is the value, so many others when it is not.
    fn compare(&mut self, value: u32, skip: (u8, u8)) {
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    }

    fn end(&mut self, answer: u32) {
        self.add(libc::BPF_RET | libc::BPF_K, answer, (0, 0));
    }

    fn answer_if(&mut self, value: u32, answer: u32) {
        self.compare(value, (0, 1));
        self.end(answer);
    }

    fn unless(&mut self, value: u32, answer: u32) {
        self.compare(value, (1, 0));
        self.end(answer);
    }

    /// Allows a call whose first argument, under one of the masks, has the value that goes with it.
    fn allow_by_first(&mut self, call: u32, allowed: &[(u64, u64)]) {
        for (mask, value) in allowed {
            let ([low_mask, high_mask], [low, high]) = (halves(*mask), halves(*value));
            // Two loads, two masks, two comparisons and the answer; then the number again.
            self.compare(call, (0, 8));
            self.load(ARGUMENTS_AT);
            self.add(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, low_mask, (0, 0));
            self.compare(low, (0, 4));
            self.load(ARGUMENTS_AT + HALF_BYTES);
            self.add(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, high_mask, (0, 0));
            self.compare(high, (0, 1));
            self.end(ALLOW);
            self.load(NUMBER_AT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_call_is_allowed_and_refused() {
        let allowed: BTreeSet<_> = list("allowed").into_iter().collect();
        let refused: BTreeSet<_> = list("refused").into_iter().collect();
        assert!(allowed.contains("read") && refused.contains("mount"));
        let both: Vec<_> = allowed.intersection(&refused).collect();
        assert!(both.is_empty(), "{both:?}");
        for dangerous in ["bpf", "keyctl", "ptrace", "unshare", "io_uring_setup", "init_module"] {
            assert!(refused.contains(dangerous), "{dangerous}");
        }
        for special in ["clone", "clone3", "socket", "personality"] {
            assert!(!allowed.contains(special), "{special} is allowed by its arguments");
        }
    }

    /// What the kernel would answer: the part of its machine that filters use here.
    fn answer(filter: &[libc::sock_filter], call: u32, first: u64) -> u32 {
        let [low, high] = halves(first);
        let shown = [call, MACHINE, 0, 0, low, high];
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = filter[at];
            at += 1;
            match step.code {
                0x20 => loaded = shown[step.k as usize / 4],
                0x54 => loaded &= step.k,
                0x15 => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                0x06 => return step.k,
                other => panic!("{other:#x} is not understood"),
            }
        }
    }

    #[test]
    fn the_program_says_what_the_profile_says() {
        let program = filter();
        let profile = profile();
        let errno = |code: i64| libc::SECCOMP_RET_ERRNO | u32::try_from(code).expect("is small");
        let says = |name: &str, first: u64| {
            let rules = profile["syscalls"].as_array().expect("a list").iter();
            let mut of_it = rules.filter(|rule| {
                let named = rule["names"].as_array().expect("a list").contains(&name.into());
                let arguments = rule["args"].as_array().map_or(&[][..], Vec::as_slice);
                named
                    && arguments.iter().all(|argument| {
                        let value = argument["value"].as_u64().expect("a number");
                        match argument["op"].as_str() {
                            Some("SCMP_CMP_EQ") => first == value,
                            _ => first & value == argument["valueTwo"].as_u64().expect("a number"),
                        }
                    })
            });
            let Some(rule) = of_it.next() else { return errno(NO_SUCH_CALL.into()) };
            rule["errnoRet"].as_i64().map_or(ALLOW, errno)
        };
        let firsts = [
            0,
            1,
            2,
            3,
            8,
            10,
            16,
            17,
            0x11,
            0x1000_0000,
            0x0200_0000,
            0xffff_ffff,
            1 << 32,
            u64::MAX,
        ];
        let known: Vec<Sysno> = Sysno::iter().collect();
        assert!(known.len() > 300, "{}", known.len());
        for call in known {
            for first in firsts {
                let (number, name) = (call.id().cast_unsigned(), call.name());
                assert_eq!(answer(&program, number, first), says(name, first), "{name} {first:#x}");
            }
        }
        // The other numbering of the same machine.
        assert_eq!(answer(&program, 0x4000_0000, 0), errno(NO_SUCH_CALL.into()));
        let mut foreign = program;
        foreign[0].k = NUMBER_AT;
        assert_eq!(answer(&foreign, 1, 0), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
