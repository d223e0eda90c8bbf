//! Which system calls a container may make, in the form of a runtime's configuration.

use serde_json::{Value, json};

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
}
