//! How fast one reader is given a long log from the disk.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;

use crate::made;
use crate::median::median;
use crate::proc::cpu_us;
use crate::process::{Process, yaml};
use crate::report::{Bound, Report};

const EVENTS: u64 = 300_000;
const TARGET_PER_S: f64 = 200_000.0;
/// The longest silence.
const SILENCE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn run(folder: &Path, rounds: usize, report: &mut Report) -> io::Result<()> {
    made::log(folder, EVENTS).await?;
    let more = "per_ip_limit: 0\nsubscriber_stall_secs: 60\n";
    let router = Process::start(folder, &yaml(&["http://127.0.0.1:9".to_owned()], more))?;
    let (mut rates, mut costs, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let address = router.address;
        let before = cpu_us(&[router.pid()])?;
        let (took, read) = tokio::task::spawn_blocking(move || replay(address)).await??;
        costs.push((cpu_us(&[router.pid()])? - before) as f64 / EVENTS as f64);
        rates.push(EVENTS as f64 / took.as_secs_f64());
        bytes = read;
    }
    let what = format!("{EVENTS} events from the disk to one reader over SSE");
    report.row("replay", &what, median(rates), "events/s", Some(Bound::Least(TARGET_PER_S)));
    report.row("replay", "router's CPU per event", median(costs), "us", None);
    report.row("replay", "bytes per event on the wire", bytes as f64 / EVENTS as f64, "", None);
    Ok(())
}

/// Reads the whole log once: how long it took, and how many bytes it was.
fn replay(address: SocketAddr) -> io::Result<(Duration, u64)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let begun = Instant::now();
    stream.write_all(b"GET /api/events?after=0 HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let needle = b"{\"seq\":";
    let finder = Finder::new(needle);
    let mut inbox = vec![0; 256 * 1024];
    let (mut held, mut events, mut bytes) = (0, 0, 0);
    while events < EVENTS {
        let read = stream.read(&mut inbox[held..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes += read as u64;
        let end = held + read;
        events += finder.find_iter(&inbox[..end]).count() as u64;
        // What the next bytes may complete.
        held = end.min(needle.len() - 1);
        inbox.copy_within(end - held..end, 0);
    }
    Ok((begun.elapsed(), bytes))
}
