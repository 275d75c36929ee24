//! One connection to an endpoint.

use core::cell::RefCell;
use core::time::Duration;

use tokio::net::TcpStream;

use crate::ports::UpstreamError;

/// How much is read at once, in bytes.
const READ_MAX: usize = 64 * 1024;

thread_local! {
    /// What a thread reads into before the bytes are copied to where they belong: a stream that
    /// waits holds no buffer.
    pub(super) static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_MAX].into());
}

/// A connection; closed when it is dropped, before the drop returns.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
}

impl Connection {
    /// Connects to `host:port` (80 if there is none).
    pub(super) async fn open(authority: &str, limit: Duration) -> Result<Connection, UpstreamError> {
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let connecting = async {
            if has_port {
                TcpStream::connect(authority).await
            } else {
                TcpStream::connect((authority.trim_matches(['[', ']']), 80)).await
            }
        };
        let connected = tokio::time::timeout(limit, connecting).await;
        let failed = |why: String| UpstreamError::Connect(why);
        let stream = connected
            .map_err(|_| failed(format!("no connection within {} s", limit.as_secs_f64())))?
            .map_err(|error| failed(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        Ok(Connection { stream })
    }

    /// Whether nothing has happened on it while it was idle: neither closed nor spoken to.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
