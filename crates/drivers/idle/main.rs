//! The first process of a container: it waits, and reaps what others leave behind.
//!
//! Built by `build.rs` on its own, without a C library, so that it runs in an empty root. It makes
//! three system calls and never allocates. Signals from inside its container do not reach it, for
//! it has no handlers; the machine ends it with `KILL`.
#![no_std]
#![no_main]

use core::arch::asm;
use core::panic::PanicInfo;

/// Signal 17, `CHLD`, in the form of a signal mask.
const CHILD_ENDED: u64 = 1 << (17 - 1);
const MASK_BYTES: usize = 8;
const BLOCK: usize = 0;
const ANY_CHILD: usize = usize::MAX;
const DO_NOT_WAIT: usize = 1;

#[cfg(target_arch = "x86_64")]
mod call {
    pub(super) const MASK: usize = 14;
    pub(super) const WAIT_FOR_SIGNAL: usize = 128;
    pub(super) const WAIT: usize = 61;
}

#[cfg(target_arch = "aarch64")]
mod call {
    pub(super) const MASK: usize = 135;
    pub(super) const WAIT_FOR_SIGNAL: usize = 137;
    pub(super) const WAIT: usize = 260;
}

/// Makes a system call with four arguments.
///
/// # Safety
/// Pointers among the arguments must be what the call expects.
unsafe fn system(number: usize, arguments: [usize; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's convention; it changes `rcx` and `r11` only.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") first, in("rsi") second,
            in("rdx") third, in("r10") fourth, out("rcx") _, out("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's convention.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") first => result, in("x1") second,
            in("x2") third, in("x3") fourth, options(nostack));
    }
    result
}

/// Where the program begins.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    let mask = &raw const CHILD_MASK as usize;
    // SAFETY: the mask is eight bytes that never change; no other pointer is passed.
    unsafe {
        system(call::MASK, [BLOCK, mask, 0, MASK_BYTES]);
        loop {
            while system(call::WAIT, [ANY_CHILD, 0, DO_NOT_WAIT, 0]) > 0 {}
            system(call::WAIT_FOR_SIGNAL, [mask, 0, 0, MASK_BYTES]);
        }
    }
}

static CHILD_MASK: u64 = CHILD_ENDED;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
