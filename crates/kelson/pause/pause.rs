//! The process that holds a pod's namespaces: it waits for a signal to stop, and reaps what other processes of a shared
//! PID namespace leave behind. No libc, no allocation; a few hundred bytes of code.

#![no_std]
#![no_main]

use core::arch::asm;

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the calls made below take integers and pointers to live locals; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

#[cfg(target_arch = "aarch64")]
fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the calls made below take integers and pointers to live locals; the kernel clobbers nothing else.
    unsafe {
        asm!("svc 0", in("x8") n, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c, in("x3") d,
             options(nostack));
    }
    answer
}

fn bit(signal: usize) -> u64 {
    1 << (signal - 1)
}

#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    let set: u64 = bit(SIGINT) | bit(SIGTERM) | bit(SIGCHLD);
    let set_at = core::ptr::from_ref(&set) as usize;
    syscall(number::RT_SIGPROCMASK, SIG_BLOCK, set_at, 0, size_of::<u64>());
    loop {
        match syscall(number::RT_SIGTIMEDWAIT, set_at, 0, 0, size_of::<u64>()) {
            signal if signal == SIGINT as isize || signal == SIGTERM as isize => break,
            _ => while syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {},
        }
    }
    loop {
        syscall(number::EXIT_GROUP, 0, 0, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        syscall(number::EXIT_GROUP, 1, 0, 0, 0);
    }
}
