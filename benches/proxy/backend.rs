//! The backend of the bench, in a process of its own: as little work per request as can be, so that the
//! machine's cores are left to the proxy and the load generator.
//!
//! Every answer is laid out before the first request; serving one is reading a body, finding its model's
//! name, and writing prepared bytes. It listens on loopback, prints its port, and ends when its stdin does.

use std::io::{self, Read as _, Write as _};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::traffic::{self, Answer, GAP_MS, Load, Style};

/// Runs the backend until stdin ends. Prints its port on the first line of stdout.
pub(crate) fn run() -> io::Result<()> {
    std::thread::spawn(|| {
        // Whatever ends the read, the parent is gone and so is the reason to run.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(4096)?;
        println!("{}", listener.local_addr()?.port());
        io::stdout().flush()?;
        serve(listener).await
    })
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    let answers = Rc::new(Prepared::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = Rc::clone(&answers);
        tokio::task::spawn_local(async move {
            // A peer that leaves is the usual end of a connection, not an error of the bench.
            let _ = converse(stream, &answers).await;
        });
    }
}

/// Every answer as bytes.
struct Prepared {
    chats: Vec<(Load, Style, bool, Chat)>,
    listings: Vec<(&'static str, Vec<u8>)>,
}

/// A chat's answer: what is written at once, then what follows at a pace, then the end.
struct Chat {
    first: Vec<u8>,
    paced: Vec<Vec<u8>>,
    last: Vec<u8>,
    /// Say nothing after `first` and keep the connection open.
    hold: bool,
}

impl Prepared {
    fn new() -> Prepared {
        let mut chats = Vec::new();
        for load in Load::ALL {
            for style in [Style::OpenAi, Style::Ollama] {
                for usage in [false, true] {
                    chats.push((load, style, usage, Chat::new(load, style, usage)));
                }
            }
        }
        let names = || Load::ALL.iter().map(|load| load.name());
        let tagged: Vec<_> = names()
            .map(|name| {
                serde_json::json!({
                    "name": format!("{name}:latest"), "model": format!("{name}:latest"),
                    "modified_at": "2026-01-01T00:00:00Z", "expires_at": "2036-01-01T00:00:00Z",
                    "size": 1_000_000_000, "size_vram": 1_000_000_000, "digest": "0".repeat(64),
                    "details": {"format": "gguf", "family": "bench", "families": ["bench"],
                        "parameter_size": "1B", "quantization_level": "Q4_0", "parent_model": ""},
                })
            })
            .collect();
        let plain: Vec<_> = names()
            .map(|name| serde_json::json!({"id": name, "object": "model", "created": 1, "owned_by": "bench"}))
            .collect();
        let listings = vec![
            ("/api/tags", whole(200, &serde_json::json!({"models": tagged}).to_string())),
            ("/api/ps", whole(200, &serde_json::json!({"models": tagged}).to_string())),
            ("/v1/models", whole(200, &serde_json::json!({"object": "list", "data": plain}).to_string())),
            ("/api/version", whole(200, r#"{"version":"0.12.6"}"#)),
            ("/health", whole(200, r#"{"status":"ok"}"#)),
            ("/", whole(200, r#""Ollama is running""#)),
        ];
        Prepared { chats, listings }
    }

    fn chat(&self, path: &str, body: &[u8]) -> Option<&Chat> {
        let style = [Style::OpenAi, Style::Ollama].into_iter().find(|style| style.path() == path)?;
        let name = after(body, b"\"model\":").and_then(|rest| after(rest, b"\""))?;
        let load = Load::ALL.into_iter().find(|load| name.starts_with(load.name().as_bytes()))?;
        let usage = after(body, b"\"include_usage\":")
            .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"true"));
        self.chats.iter().find(|row| (row.0, row.1, row.2) == (load, style, usage)).map(|row| &row.3)
    }
}

impl Chat {
    fn new(load: Load, style: Style, usage: bool) -> Chat {
        let Answer { tokens, closing } = traffic::answer(load, style, usage);
        if load == Load::Json {
            let first = whole(200, &String::from_utf8_lossy(&tokens[0]));
            return Chat { first, paced: Vec::new(), last: Vec::new(), hold: false };
        }
        let mut first = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            style.stream_media()
        )
        .into_bytes();
        let mut chunks: Vec<_> = tokens.iter().map(|frame| chunk(frame)).collect();
        let mut last: Vec<u8> = closing.iter().flat_map(|frame| chunk(frame)).collect();
        last.extend_from_slice(b"0\r\n\r\n");
        first.append(&mut chunks.remove(0));
        let mut paced = Vec::new();
        match load {
            Load::Burst => first.extend(chunks.concat().into_iter().chain(std::mem::take(&mut last))),
            _ => paced = chunks,
        }
        Chat { first, paced, last, hold: load == Load::Idle }
    }
}

fn whole(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn chunk(frame: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", frame.len()).as_bytes(), frame, b"\r\n"].concat()
}

/// What follows the first `needle` in `haystack`.
fn after<'a>(haystack: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    let at = haystack.windows(needle.len()).position(|window| window == needle)?;
    Some(&haystack[at + needle.len()..])
}

async fn converse(mut stream: TcpStream, answers: &Prepared) -> io::Result<()> {
    let not_found = whole(404, r#"{"error":"not in this bench"}"#);
    let mut inbox = BytesMut::with_capacity(4096);
    while let Some((path, head, total)) = request(&mut stream, &mut inbox).await? {
        let listing = answers.listings.iter().find(|(listed, _)| *listed == path);
        if let Some(chat) = answers.chat(&path, &inbox[head..total]) {
            let begun = Instant::now();
            stream.write_all(&chat.first).await?;
            if chat.hold {
                while stream.read_buf(&mut inbox).await? > 0 {}
                return Ok(());
            }
            for (frame, ordinal) in chat.paced.iter().zip(1..) {
                tokio::time::sleep_until(begun + Duration::from_millis(GAP_MS) * ordinal).await;
                stream.write_all(frame).await?;
            }
            stream.write_all(&chat.last).await?;
        } else {
            stream.write_all(listing.map_or(&not_found, |(_, bytes)| bytes)).await?;
        }
        inbox.advance(total);
    }
    Ok(())
}

/// Reads a whole request into `inbox`: its path, where its head ends, and where it ends. `None` at the end.
async fn request(stream: &mut TcpStream, inbox: &mut BytesMut) -> io::Result<Option<(String, usize, usize)>> {
    loop {
        if let Some(found) = parse(inbox)? {
            return Ok(Some(found));
        }
        if stream.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse(inbox: &[u8]) -> io::Result<Option<(String, usize, usize)>> {
    if inbox.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let used = match head.parse(inbox).map_err(io::Error::other)? {
        httparse::Status::Complete(used) => used,
        httparse::Status::Partial => return Ok(None),
    };
    let value = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let total = if value("transfer-encoding").is_some() {
        // Nobody pipelines in this bench, so a chunked body ends where the bytes do.
        if !inbox.ends_with(b"0\r\n\r\n") {
            return Ok(None);
        }
        inbox.len()
    } else {
        used + value("content-length").and_then(|text| text.parse().ok()).unwrap_or(0usize)
    };
    let path = head.path.unwrap_or("/").to_owned();
    Ok((inbox.len() >= total).then_some((path, used, total)))
}
