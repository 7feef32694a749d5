//! The operating system as the simulated hosts see it: their clocks, their dice, and what a crash
//! leaves on their disks.
//!
//! The C library's functions are replaced in this test program. On the simulation's own thread they
//! answer from the world's time and seed, and remember what was written and not yet synced; on any
//! other thread they do what they always do. So the product runs as it is, and a run depends on its
//! seed alone.

#![allow(unsafe_code, reason = "replaces functions of the C library")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_long, c_void};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fastrand::Rng;

/// What a disk writes as one piece, in bytes.
const SECTOR_BYTES: u64 = 512;
/// Of the monotonic clock when the world begins.
const MONOTONIC_BEGIN_NS: u64 = 1_000_000_000_000;
/// Of the wall clock when the world begins: 2026-01-01T00:00:00Z.
const WALL_BEGIN_NS: u64 = 1_767_225_600_000_000_000;
const CLOCK_REALTIME: c_int = 0;
const EIO: c_int = 5;

pub type HostId = usize;

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Asking tokio for the time may ask here again.
    static ASKING: Cell<bool> = const { Cell::new(false) };
    static WORLD_NS: Cell<u64> = const { Cell::new(0) };
    static HOST: Cell<Option<HostId>> = const { Cell::new(None) };
    static BEGIN: Cell<Option<std::time::Instant>> = const { Cell::new(None) };
    static DICE: RefCell<Option<Rng>> = const { RefCell::new(None) };
    static HOSTS: RefCell<BTreeMap<HostId, HostOs>> = const { RefCell::new(BTreeMap::new()) };
}

/// What is particular to one host.
#[derive(Default)]
struct HostOs {
    /// Of its wall clock, in nanoseconds.
    skew_ns: i64,
    /// The host dies at the so-manieth operation on its disk from now.
    crash_in: Option<u32>,
    /// The next sync fails, as a broken disk's does.
    fails_next_sync: bool,
    /// Died in the middle of an operation: nothing it does reaches the disk any more.
    dead: bool,
    /// By inode, what was there before each write that is not synced yet.
    unsynced: BTreeMap<u64, Unsynced>,
}

struct Unsynced {
    file: OwnedFd,
    /// Offset, and the bytes before.
    writes: Vec<(u64, Vec<u8>)>,
}

/// Begins a world on this thread.
pub fn begin(seed: u64) {
    DICE.set(Some(Rng::with_seed(seed ^ 0x05D1_CE05)));
    ACTIVE.set(true);
    BEGIN.set(Some(std::time::Instant::now()));
}

/// The world's time since it began, in nanoseconds.
pub fn set_time(ns: u64) {
    WORLD_NS.set(ns);
}

/// What runs from now on runs on this host.
pub fn enter(host: Option<HostId>) {
    HOST.set(host);
}

fn with_host<T>(host: HostId, work: impl FnOnce(&mut HostOs) -> T) -> T {
    HOSTS.with_borrow_mut(|hosts| work(hosts.entry(host).or_default()))
}

/// Sets the host's wall clock off by so much.
pub fn skew(host: HostId, ns: i64) {
    with_host(host, |os| os.skew_ns = ns);
}

/// Lets the host die in the middle of the so-manieth operation on its disk from now.
pub fn crash_in(host: HostId, operations: u32) {
    with_host(host, |os| os.crash_in = Some(operations));
}

pub fn fail_next_sync(host: HostId) {
    with_host(host, |os| os.fails_next_sync = true);
}

/// It died in the middle of an operation.
pub fn is_dead(host: HostId) -> bool {
    with_host(host, |os| os.dead)
}

/// Nothing the host does reaches its disk any more.
pub fn kill(host: HostId) {
    with_host(host, |os| os.dead = true);
}

/// A process begins with a disk that works. Where the power was lost: of what was not synced, each
/// sector is there or is not.
pub fn begin_process(host: HostId, rng: &mut Rng) {
    with_host(host, |os| {
        if !os.dead {
            os.crash_in = None;
            os.fails_next_sync = false;
            return;
        }
        for unsynced in std::mem::take(&mut os.unsynced).into_values() {
            for (offset, before) in unsynced.writes.iter().rev() {
                restore_some(unsynced.file.as_fd(), *offset, before, rng);
            }
        }
        *os = HostOs { skew_ns: os.skew_ns, ..HostOs::default() };
    });
}

fn restore_some(file: BorrowedFd<'_>, offset: u64, before: &[u8], rng: &mut Rng) {
    let mut at = offset;
    let end = offset + before.len() as u64;
    // Often all or nothing, now and then in pieces.
    let share = *rng.choice(&[0.0, 1.0, 0.5, 0.9]).unwrap_or(&1.0);
    while at < end {
        let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
        if rng.f64() < share {
            let piece = &before[(at - offset) as usize..(next - offset) as usize];
            let _ = rustix::io::pwrite(file, piece, at);
        }
        at = next;
    }
}

/// Nanoseconds since the world began: within a host's turn its runtime's time.
fn elapsed_ns() -> u64 {
    let Some(begin) = BEGIN.get().filter(|_| !ASKING.get()) else { return WORLD_NS.get() };
    if HOST.get().is_none() || tokio::runtime::Handle::try_current().is_err() {
        return WORLD_NS.get();
    }
    ASKING.set(true);
    let now = tokio::time::Instant::now().into_std();
    ASKING.set(false);
    u64::try_from(now.duration_since(begin).as_nanos()).unwrap_or(u64::MAX)
}

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, into: *mut Timespec) -> c_int {
    let active = ACTIVE.try_with(Cell::get).unwrap_or(false);
    let (seconds, nanoseconds) = if active {
        let elapsed = elapsed_ns();
        let ns = if clock == CLOCK_REALTIME {
            let skew = HOST.get().map_or(0, |host| with_host(host, |os| os.skew_ns));
            (WALL_BEGIN_NS + elapsed).saturating_add_signed(skew)
        } else {
            MONOTONIC_BEGIN_NS + elapsed
        };
        ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as c_long)
    } else {
        let clock = match clock {
            CLOCK_REALTIME => rustix::time::ClockId::Realtime,
            _ => rustix::time::ClockId::Monotonic,
        };
        let now = rustix::time::clock_gettime(clock);
        (now.tv_sec, now.tv_nsec)
    };
    // SAFETY: the caller hands in a place for the answer.
    unsafe { into.write(Timespec { seconds, nanoseconds }) };
    0
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(into: *mut c_void, bytes: usize, _flags: u32) -> isize {
    if bytes == 0 {
        return 0;
    }
    // SAFETY: the caller hands in room for so many bytes.
    let into = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), bytes) };
    let rolled = DICE.try_with(|dice| {
        let mut dice = dice.try_borrow_mut().ok()?;
        dice.as_mut().map(|rng| rng.fill(into))
    });
    if !matches!(rolled, Ok(Some(()))) {
        let _ = rustix::rand::getrandom(into, rustix::rand::GetRandomFlags::empty());
    }
    bytes as isize
}

fn inode(file: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| stat.st_ino)
}

fn fail() -> isize {
    // SAFETY: the C library's own place for the error of the last call.
    unsafe { *errno() = EIO };
    -1
}

unsafe extern "C" {
    #[link_name = "__errno_location"]
    fn errno() -> *mut c_int;
}

/// What becomes of one operation on the disk of the host that is running.
enum Fate {
    /// Not of the simulation.
    Outside,
    Done,
    /// The host dies in the middle of it.
    Dies,
    Fails,
}

fn fate(is_sync: bool) -> Fate {
    if !ACTIVE.try_with(Cell::get).unwrap_or(false) {
        return Fate::Outside;
    }
    let Some(host) = HOST.get() else { return Fate::Outside };
    with_host(host, |os| {
        if os.dead {
            return Fate::Fails;
        }
        if is_sync && std::mem::take(&mut os.fails_next_sync) {
            return Fate::Fails;
        }
        match &mut os.crash_in {
            Some(0) => {
                os.dead = true;
                Fate::Dies
            }
            Some(left) => {
                *left -= 1;
                Fate::Done
            }
            None => Fate::Done,
        }
    })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, n: usize, at: i64) -> isize {
    // SAFETY: the caller hands in so many bytes, and a file that is open.
    let (bytes, file) =
        unsafe { (std::slice::from_raw_parts(bytes.cast::<u8>(), n), BorrowedFd::borrow_raw(fd)) };
    let offset = at as u64;
    let fate = fate(false);
    match fate {
        Fate::Fails => return fail(),
        Fate::Outside => {}
        Fate::Done | Fate::Dies => remember(file, offset, n),
    }
    let written = rustix::io::pwrite(file, bytes, offset);
    match (fate, written) {
        (Fate::Dies, _) | (_, Err(_)) => fail(),
        (_, Ok(written)) => written as isize,
    }
}

fn remember(file: BorrowedFd<'_>, offset: u64, bytes: usize) {
    let Some(host) = HOST.get() else { return };
    let mut before = vec![0; bytes];
    let mut have = 0;
    while have < bytes {
        match rustix::io::pread(file, &mut before[have..], offset + have as u64) {
            Ok(read) if read > 0 => have += read,
            _ => break,
        }
    }
    let Ok(kept) = file.try_clone_to_owned() else { return };
    with_host(host, |os| {
        let unsynced = os
            .unsynced
            .entry(inode(file))
            .or_insert_with(|| Unsynced { file: kept, writes: Vec::new() });
        unsynced.writes.push((offset, before));
    });
}

fn sync(fd: c_int) -> c_int {
    match fate(true) {
        Fate::Fails | Fate::Dies => return fail() as c_int,
        Fate::Outside => {
            // SAFETY: the caller hands in a file that is open.
            let file = unsafe { BorrowedFd::borrow_raw(fd) };
            return if rustix::fs::fsync(file).is_ok() { 0 } else { fail() as c_int };
        }
        Fate::Done => {}
    }
    // SAFETY: the caller hands in a file that is open.
    let inode = inode(unsafe { BorrowedFd::borrow_raw(fd) });
    if let Some(host) = HOST.get() {
        with_host(host, |os| os.unsynced.remove(&inode));
    }
    0
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd)
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd)
}

/// The host that runs now.
pub fn current() -> Option<HostId> {
    HOST.get()
}

/// Takes back what was to go wrong with the host.
pub fn disarm(host: HostId) {
    with_host(host, |os| {
        os.crash_in = None;
        os.fails_next_sync = false;
        os.skew_ns = 0;
    });
}
