//! What the kernel knows about a process: CPU time, memory, children. Linux only: it reads `/proc`.
//!
//! Field numbers and units are those of proc_pid_stat(5) and proc_pid_status(5).

use std::fs;
use std::io;

/// Microseconds in one tick of `/proc/<pid>/stat`: Linux reports times in hundredths of a second (USER_HZ).
const TICK_US: u64 = 10_000;

/// CPU time these processes have used so far, all threads, user and system, in microseconds.
pub(crate) fn cpu_us(pids: &[u32]) -> io::Result<u64> {
    pids.iter().map(|pid| stat(*pid).map(|stat| stat.ticks * TICK_US)).sum()
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// Field 4 is the parent, 14 and 15 are utime and stime.
fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything; count from its end.
    let fields: Vec<_> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    match (number(4), number(14), number(15)) {
        (Some(parent), Some(user), Some(system)) => Ok(Stat { parent: parent as u32, ticks: user + system }),
        _ => Err(io::Error::other(format!("/proc/{pid}/stat is not as expected"))),
    }
}

/// The processes whose parent this is.
pub(crate) fn children(parent: u32) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // A process may end between being listed and being read.
    Ok(entries.filter(|pid| stat(*pid).is_ok_and(|stat| stat.parent == parent)).collect())
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|text| text.parse().ok());
    kib.ok_or_else(|| io::Error::other(format!("/proc/{pid}/status tells no VmRSS")))
}

/// The user this process acts as.
pub(crate) fn effective_user() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let id = line.and_then(|rest| rest.split_whitespace().nth(1)).and_then(|text| text.parse().ok());
    id.ok_or_else(|| io::Error::other("/proc/self/status tells no Uid"))
}
