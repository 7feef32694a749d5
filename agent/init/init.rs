//! The init of Timonier's containers: one static program without libraries, so that it runs in
//! any image, as any user, on a read-only root.
//!
//! - `timonier-init run [--no-wait] -- ARGV…` waits until the network namespace has a default
//!   route, which the agent adds last, then becomes ARGV: found through PATH, with environment,
//!   working folder, signals and open files as they were.
//! - `timonier-init sandbox` holds a pod's namespaces: it reaps children and ends on SIGTERM or
//!   SIGINT.
//!
//! It starts nothing beside itself, forwards no signals and keeps no log. Compiled by the agent's
//! build script, not a part of the crate.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::ptr;

/// How long `run` waits for the network.
const WAIT_SECONDS_MAX: u64 = 30;
const POLL_INTERVAL_NS: u64 = 1_000_000;
const PATH_BYTES_MAX: usize = 4096;
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit codes, as Docker has them.
const EXIT_INIT_FAILED: u64 = 125;
const EXIT_NOT_EXECUTABLE: u64 = 126;
const EXIT_NOT_FOUND: u64 = 127;

const ENOENT: i64 = -2;
const ENOEXEC: i64 = -8;
const EACCES: i64 = -13;
const ENOTDIR: i64 = -20;

const SIGHUP: u64 = 1;
const SIGINT: u64 = 2;
const SIGQUIT: u64 = 3;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: u64 = 0;
const SIG_SETMASK: u64 = 2;
const SIGNAL_SET_BYTES: u64 = 8;

const AT_FDCWD: u64 = -100_i64 as u64;
const O_CLOEXEC: u64 = 0o2_000_000;
const CLOCK_MONOTONIC: u64 = 1;
const WNOHANG: u64 = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const CLOSE: u64 = 3;
    pub const RT_SIGPROCMASK: u64 = 14;
    pub const EXECVE: u64 = 59;
    pub const WAIT4: u64 = 61;
    pub const RT_SIGTIMEDWAIT: u64 = 128;
    pub const CLOCK_GETTIME: u64 = 228;
    pub const EXIT_GROUP: u64 = 231;
    pub const OPENAT: u64 = 257;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const OPENAT: u64 = 56;
    pub const CLOSE: u64 = 57;
    pub const READ: u64 = 63;
    pub const WRITE: u64 = 64;
    pub const EXIT_GROUP: u64 = 94;
    pub const CLOCK_GETTIME: u64 = 113;
    pub const RT_SIGPROCMASK: u64 = 135;
    pub const RT_SIGTIMEDWAIT: u64 = 137;
    pub const EXECVE: u64 = 221;
    pub const WAIT4: u64 = 260;
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym start,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {main}",
    "brk #1",
    main = sym start,
);

/// A system call; its result, or minus the error's number.
#[cfg(target_arch = "x86_64")]
fn call(number: u64, a: u64, b: u64, c: u64, d: u64) -> i64 {
    let result;
    // SAFETY: each caller passes pointers that are valid for the call it names.
    unsafe {
        asm!("syscall", inlateout("rax") number as i64 => result, in("rdi") a, in("rsi") b,
             in("rdx") c, in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: u64, a: u64, b: u64, c: u64, d: u64) -> i64 {
    let result;
    // SAFETY: each caller passes pointers that are valid for the call it names.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a as i64 => result, in("x1") b,
             in("x2") c, in("x3") d, options(nostack));
    }
    result
}

/// The arguments or the environment: pointers to C strings, the last one null.
type Strings = *const *const c_char;

/// The kernel leaves on the stack: the count of arguments, the arguments, a null, the
/// environment, a null.
extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel laid it out so.
    let (argv, environment) = unsafe {
        let argv = stack.add(1) as Strings;
        (argv, argv.add(*stack + 1))
    };
    match text(argv, 1) {
        Some(b"run") => {
            let wait = text(argv, 2) != Some(b"--no-wait");
            let separator = if wait { 2 } else { 3 };
            if text(argv, separator) != Some(b"--") || text(argv, separator + 1).is_none() {
                usage();
            }
            if wait {
                await_network();
            }
            // SAFETY: there is an argument at that place, so it is within the array.
            execute(unsafe { argv.add(separator + 1) }, environment)
        }
        Some(b"sandbox") => hold(),
        _ => usage(),
    }
}

/// The string at `index`, none at the end; only to be asked up to the first none.
fn text<'a>(strings: Strings, index: usize) -> Option<&'a [u8]> {
    // SAFETY: the array ends in a null, which callers do not go past, and holds C strings that
    // live as long as the process.
    unsafe {
        let string = *strings.add(index);
        if string.is_null() { None } else { Some(CStr::from_ptr(string).to_bytes()) }
    }
}

fn usage() -> ! {
    say(&[b"usage: timonier-init run [--no-wait] -- PROGRAM [ARGUMENT...] | sandbox"]);
    exit(EXIT_INIT_FAILED)
}

/// Waits for the default route. A signal that would end the program ends the wait; it could not
/// otherwise, since the kernel keeps signals without a handler from a namespace's first process.
fn await_network() {
    let ending = set(SIGTERM) | set(SIGINT) | set(SIGQUIT) | set(SIGHUP);
    let mut before = 0_u64;
    mask(SIG_BLOCK, ending, &mut before);
    let deadline = seconds() + WAIT_SECONDS_MAX;
    while !has_default_route() {
        if seconds() > deadline {
            say(&[b"no network after 30 s: the agent has added no default route"]);
            exit(EXIT_INIT_FAILED);
        }
        if let Some(signal) = next_signal(ending, Some(POLL_INTERVAL_NS)) {
            exit(128 + signal);
        }
    }
    let mut ignored = 0;
    mask(SIG_SETMASK, before, &mut ignored);
}

/// The kernel lists routes by destination, so the default route is among the first.
fn has_default_route() -> bool {
    let path = c"/proc/net/route";
    let file = call(number::OPENAT, AT_FDCWD, path.as_ptr() as u64, O_CLOEXEC, 0);
    if file < 0 {
        say(&[b"cannot read /proc/net/route, which tells when the network is there"]);
        exit(EXIT_INIT_FAILED);
    }
    let mut buffer = [0_u8; 2048];
    let count = call(number::READ, file as u64, buffer.as_mut_ptr() as u64, buffer.len() as u64, 0);
    call(number::CLOSE, file as u64, 0, 0, 0);
    let read = buffer.get(..count.max(0) as usize).unwrap_or(&[]);
    // Interface, destination, gateway, flags, references, use, metric, mask.
    read.split(|byte| *byte == b'\n').skip(1).any(|line| {
        let mut fields = line.split(|byte| *byte == b'\t');
        let destination = fields.nth(1);
        let up = fields.nth(1).and_then(|flags| flags.last()).is_some_and(is_odd_digit);
        let mask = fields.nth(3);
        destination == Some(b"00000000") && mask == Some(b"00000000") && up
    })
}

/// Whether the lowest bit (RTF_UP) is set in a hexadecimal digit.
fn is_odd_digit(digit: &u8) -> bool {
    matches!(digit, b'1' | b'3' | b'5' | b'7' | b'9' | b'B' | b'D' | b'F')
}

/// Becomes the program, or says in Docker's words why it cannot.
fn execute(argv: Strings, environment: Strings) -> ! {
    let name = text(argv, 0).unwrap_or(b"");
    if name.contains(&b'/') {
        // SAFETY: the first argument is there: its name was just read.
        let error = unsafe { become_program(*argv, argv, environment) };
        refuse(name, error, false);
    }
    let mut refusal = ENOENT;
    if !name.is_empty() {
        for folder in variable(environment, b"PATH=").unwrap_or(DEFAULT_PATH).split(is_colon) {
            let folder = if folder.is_empty() { b"." } else { folder };
            let mut path = [0_u8; PATH_BYTES_MAX];
            if !join(&mut path, folder, name) {
                continue;
            }
            match become_program(path.as_ptr() as *const c_char, argv, environment) {
                ENOENT | ENOTDIR => {}
                EACCES => refusal = EACCES,
                error => refuse(name, error, true),
            }
        }
    }
    refuse(name, refusal, true)
}

fn become_program(path: *const c_char, argv: Strings, environment: Strings) -> i64 {
    call(number::EXECVE, path as u64, argv as u64, environment as u64, 0)
}

fn refuse(name: &[u8], error: i64, looked_up: bool) -> ! {
    let (reason, code): (&[u8], u64) = match error {
        ENOENT if looked_up => (b"executable file not found in $PATH", EXIT_NOT_FOUND),
        ENOENT => (b"no such file or directory", EXIT_NOT_FOUND),
        ENOTDIR => (b"not a directory", EXIT_NOT_FOUND),
        EACCES => (b"permission denied", EXIT_NOT_EXECUTABLE),
        ENOEXEC => (b"exec format error", EXIT_NOT_EXECUTABLE),
        _ => (b"the kernel refuses it", EXIT_NOT_EXECUTABLE),
    };
    say(&[b"exec \"", name, b"\": ", reason]);
    exit(code)
}

fn is_colon(byte: &u8) -> bool {
    *byte == b':'
}

/// The value of an environment variable, given its name with the equals sign.
fn variable<'a>(environment: Strings, prefix: &[u8]) -> Option<&'a [u8]> {
    let mut index = 0;
    while let Some(entry) = text(environment, index) {
        if let Some(value) = entry.strip_prefix(prefix) {
            return Some(value);
        }
        index += 1;
    }
    None
}

/// Puts `folder/name` and a final zero into `path`; false if it does not fit.
fn join(path: &mut [u8], folder: &[u8], name: &[u8]) -> bool {
    if folder.len() + name.len() + 2 > path.len() {
        return false;
    }
    let bytes = folder.iter().chain(b"/").chain(name).chain(b"\0");
    for (slot, byte) in path.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    true
}

/// Reaps children until told to end.
fn hold() -> ! {
    let signals = set(SIGCHLD) | set(SIGTERM) | set(SIGINT);
    let mut ignored = 0;
    mask(SIG_BLOCK, signals, &mut ignored);
    loop {
        if let Some(SIGTERM | SIGINT) = next_signal(signals, None) {
            exit(0);
        }
        while call(number::WAIT4, u64::MAX, 0, WNOHANG, 0) > 0 {}
    }
}

fn set(signal: u64) -> u64 {
    1 << (signal - 1)
}

fn mask(how: u64, signals: u64, before: &mut u64) {
    let (signals, before) = (ptr::from_ref(&signals) as u64, ptr::from_mut(before) as u64);
    call(number::RT_SIGPROCMASK, how, signals, before, SIGNAL_SET_BYTES);
}

/// Waits for one of the blocked `signals`; none when the time is over, or for no reason.
fn next_signal(signals: u64, timeout_ns: Option<u64>) -> Option<u64> {
    let timeout = timeout_ns.map(|ns| [0, ns]);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let signals = ptr::from_ref(&signals) as u64;
    let signal = call(number::RT_SIGTIMEDWAIT, signals, 0, timeout as u64, SIGNAL_SET_BYTES);
    u64::try_from(signal).ok().filter(|signal| *signal > 0)
}

fn seconds() -> u64 {
    let mut now = [0_u64; 2];
    call(number::CLOCK_GETTIME, CLOCK_MONOTONIC, now.as_mut_ptr() as u64, 0, 0);
    let [seconds, _] = now;
    seconds
}

/// One line on standard error.
fn say(parts: &[&[u8]]) {
    for part in [b"timonier-init: ".as_slice()].iter().chain(parts).chain(&[b"\n".as_slice()]) {
        call(number::WRITE, 2, part.as_ptr() as u64, part.len() as u64, 0);
    }
}

fn exit(code: u64) -> ! {
    loop {
        call(number::EXIT_GROUP, code, 0, 0, 0);
    }
}

/// What the compiler expects of libc: small rather than fast. Each byte is accessed as volatile,
/// or the compiler would see through the loops and make them calls of themselves.
mod memory {
    use core::ptr::{read_volatile, write_volatile};

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(string: *const u8) -> usize {
        let mut length = 0;
        // SAFETY: the caller's string ends in a zero.
        while unsafe { read_volatile(string.add(length)) } != 0 {
            length += 1;
        }
        length
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
        for i in 0..length {
            // SAFETY: the caller's areas have that length.
            let (a, b) = unsafe { (read_volatile(a.add(i)), read_volatile(b.add(i))) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
        // SAFETY: the caller's areas have that length.
        unsafe { memcmp(a, b, length) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        for i in 0..length {
            // SAFETY: the caller's areas have that length.
            unsafe { write_volatile(to.add(i), read_volatile(from.add(i))) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
        for i in 0..length {
            // SAFETY: the caller's area has that length.
            unsafe { write_volatile(to.add(i), byte as u8) };
        }
        to
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(&[b"internal error"]);
    exit(EXIT_INIT_FAILED)
}
