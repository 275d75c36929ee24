//! The life of one connection: read a request, find its route, answer it, act out the fault in force, repeat.
//!
//! Everything that can end a request badly passes through `converse`, which is where it is counted. Waiting
//! is always done with an eye on the client (`Line::rest`), so that one that leaves is noticed at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Backend;
use super::account::{Account, eval_time};
use super::answer;
use super::ask::{Ask, Task};
use super::fault::Fault;
use super::profile::{Kind, Profile};
use super::reply::{self, Framing, LAST_CHUNK, Reply, Script, Whole, media};
use super::request::{Line, Request};
use super::routes::{self, Route};
use super::stamp::Stamp;
use super::stats::End;
use super::{ollama, openai};

/// What `Fault::Garbage` sends.
const GARBAGE: &[u8] = b"\x00\xff\x7fSWITCH JAMMED\r\n\x01\x02 this was never HTTP\r\n\r\n";
/// What `Fault::GarbageBody` calls JSON.
const GARBAGE_BODY: &[u8] = b"<html>{\"model\": not json at all";
/// How many bytes `Fault::WrongLength` promises and does not send.
const MISSING_BYTES: usize = 64;

/// Serves one connection until either side closes it.
pub(super) async fn serve(backend: Arc<Backend>, stream: TcpStream) {
    let _open = backend.tally.connection();
    let mut line = Line::new(stream);
    loop {
        let request = match line.request().await {
            Ok(Some(request)) => Arc::new(request),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // The client may be gone already; there is nobody else to tell.
                let _ = line.send(&Whole::text(400, "400 Bad Request").bytes()).await;
                return;
            }
            Ok(None) | Err(_) => return,
        };
        backend.note(&request);
        match respond(&backend, &mut line, &request).await {
            Ok(After::Keep) if !request.wants_close() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

async fn respond(backend: &Backend, line: &mut Line, request: &Request) -> io::Result<After> {
    let kind = backend.profile.kind;
    let native = kind == Kind::Ollama && !request.path.starts_with("/v1/");
    let plain = |whole: Whole| (whole, Fault::None);
    let refuse = |status, message: &str| plain(error(kind, native, status, message));
    let route = routes::find(kind, &request.method, &request.path);
    let (whole, fault) = match route {
        _ if !authorised(&backend.profile, request) => refuse(401, "the bearer key is missing or wrong"),
        None if native => plain(Whole::text(404, "404 page not found")),
        None => refuse(404, &format!("there is no {} {}", request.method, request.path)),
        Some(Route::Ask(task)) => match Ask::parse(task, &request.body) {
            Err(message) => refuse(400, &message),
            Ok(ask) => match backend.profile.find(&ask.model) {
                None => plain(no_model(kind, native, &ask.model)),
                Some(index) => return converse(backend, line, task, &ask, index).await,
            },
        },
        Some(route) => {
            let fault = if route.lists() { backend.faults().listing() } else { Fault::None };
            (tell(backend, route, request), fault)
        }
    };
    if request.method == "HEAD" {
        line.send(&whole.head(whole.body.len())).await?;
        return Ok(After::Keep);
    }
    let acted = act(line, kind, native, &Reply::Whole(whole), &Pace::default(), fault).await?;
    Ok(acted.after())
}

fn authorised(profile: &Profile, request: &Request) -> bool {
    profile.api_key.as_ref().is_none_or(|key| {
        request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
    })
}

fn error(kind: Kind, native: bool, status: u16, message: &str) -> Whole {
    if native { ollama::error(status, message) } else { openai::error(kind, status, message) }
}

fn no_model(kind: Kind, native: bool, name: &str) -> Whole {
    let message = match kind {
        Kind::OpenAi => format!("The model `{name}` does not exist or you do not have access to it."),
        Kind::Ollama | Kind::LlamaServer => format!("model '{name}' not found"),
    };
    error(kind, native, 404, &message)
}

/// The answer of a route that asks no model.
fn tell(backend: &Backend, route: Route, request: &Request) -> Whole {
    let (profile, now) = (&backend.profile, Stamp::now());
    let listed = || profile.models.iter().enumerate().map(|(index, model)| (model, backend.is_loaded(index)));
    match route {
        Route::Tags => ollama::tags(&profile.models, now),
        Route::Ps => ollama::ps(listed().filter(|(_, loaded)| *loaded).map(|(model, _)| model), now),
        Route::Models => openai::models(profile.kind, listed(), now),
        Route::Version => Whole::json(200, &json!({"version": profile.version})),
        Route::Health => Whole::json(200, &json!({"status": "ok"})),
        Route::Show => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            match body.get("model").or_else(|| body.get("name")).and_then(Value::as_str) {
                None => ollama::error(400, "model is required"),
                Some(name) => match profile.find(name) {
                    Some(index) => ollama::show(&profile.models[index], now),
                    None => no_model(profile.kind, true, name),
                },
            }
        }
        Route::Model => {
            let name = request.path.strip_prefix("/v1/models/").unwrap_or_default();
            match profile.find(name) {
                Some(at) => {
                    let item = openai::model(profile.kind, &profile.models[at], backend.is_loaded(at), now);
                    Whole::json(200, &item)
                }
                None => no_model(profile.kind, false, name),
            }
        }
        Route::Root | Route::Ask(_) => Whole::text(200, "Ollama is running"),
    }
}

/// Answers a request to a model and counts how it ended.
async fn converse(
    backend: &Backend,
    line: &mut Line,
    task: Task,
    ask: &Ask,
    index: usize,
) -> io::Result<After> {
    let model = &backend.profile.models[index];
    let running = backend.tally.running(&model.name);
    let fault = backend.faults().take_asking();
    match work(backend, line, task, ask, index, fault).await {
        Ok((Acted::Whole, end)) => {
            running.end(end);
            Ok(After::Keep)
        }
        Ok((acted, _)) => {
            running.end(End::Broken);
            Ok(acted.after())
        }
        Err(error) => {
            running.end(End::Cut);
            Err(error)
        }
    }
}

async fn work(
    backend: &Backend,
    line: &mut Line,
    task: Task,
    ask: &Ask,
    index: usize,
    fault: Fault,
) -> io::Result<(Acted, End)> {
    let profile = &backend.profile;
    let _turn = match &backend.gates[index] {
        Some(gate) => tokio::select! {
            biased;
            turn = gate.acquire() => Some(turn.expect("a gate is never closed")),
            left = line.rest(None) => return Err(left.expect_err("a rest without end ends with the client")),
        },
        None => None,
    };
    let load = if backend.is_loaded(index) { Duration::ZERO } else { profile.models[index].load_time };
    if !load.is_zero() {
        line.rest(Some(Instant::now() + load)).await?;
    }
    backend.set_loaded(index, true);

    // What the model was asked to say nothing to only loads it or sends it away.
    let touched = matches!(task, Task::Chat | Task::Generate) && ask.texts.iter().all(String::is_empty);
    let output_tokens = match ask.tokens_max {
        _ if task.embeds() || touched => 0,
        Some(most) => profile.tokens.min(most),
        None => profile.tokens,
    };
    let account = Account {
        model: &ask.model,
        serial: backend.serial(),
        created: Stamp::now(),
        // The older embeddings answer has no place to report them.
        input_tokens: if task == Task::Embeddings { 0 } else { ask.input_tokens() },
        output_tokens,
        limited: output_tokens < profile.tokens,
        load,
        prompt: profile.first_token,
        eval: eval_time(profile, output_tokens),
    };
    let pace = Pace {
        first: account.prompt,
        gap: profile.token_gap,
        eval: account.eval,
        burst: profile.chunks_in_one_burst,
    };
    let reply = compose(profile, task, ask, &account, touched, fault);
    let native = profile.kind == Kind::Ollama && task.native();
    let acted = act(line, profile.kind, native, &reply, &pace, fault).await?;
    if ask.unload {
        backend.set_loaded(index, false);
    }
    Ok((acted, End::Completed { input_tokens: account.input_tokens, output_tokens }))
}

/// Lays out the answer of a model.
fn compose(
    profile: &Profile,
    task: Task,
    ask: &Ask,
    account: &Account<'_>,
    touched: bool,
    fault: Fault,
) -> Reply {
    let whole = match task {
        Task::Embed | Task::Embeddings => Some(ollama::embeddings(task, account, ask)),
        Task::V1Embeddings => Some(openai::embeddings(account, ask)),
        _ if touched => Some(ollama::touched(task, account, ask.unload)),
        _ => None,
    };
    if let Some(whole) = whole {
        return Reply::Whole(whole);
    }
    let tokens = answer::words(ask.prompt(), account.output_tokens);
    if !ask.stream {
        return Reply::Whole(match task.native() {
            true => ollama::whole(task, account, &tokens),
            false => openai::whole(profile.kind, task, account, &tokens),
        });
    }
    let shape = match task.native() {
        true => ollama::shape(task, account),
        false => openai::shape(profile.kind, task, account, ask.include_usage),
    };
    let huge = if let Fault::HugeLine(bytes) = fault { Some(bytes) } else { None };
    Reply::Stream(Script::new(&shape, &tokens, huge))
}

/// When the parts of an answer are due.
#[derive(Debug, Default)]
struct Pace {
    /// The first token.
    first: Duration,
    /// From token to token.
    gap: Duration,
    /// From the first token to the last.
    eval: Duration,
    /// Everything at once when the first token is due.
    burst: bool,
}

/// How an answer went, when the client stayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acted {
    /// As it should.
    Whole,
    /// Spoiled on purpose; the connection is still in order.
    Spoiled,
    /// Spoiled on purpose, and the connection with it.
    Ruined,
}

impl Acted {
    fn after(self) -> After {
        if self == Acted::Ruined { After::Close } else { After::Keep }
    }
}

/// Sends `reply` at its pace, with `fault` done to it. An error means that the client left.
async fn act(
    line: &mut Line,
    kind: Kind,
    native: bool,
    reply: &Reply,
    pace: &Pace,
    fault: Fault,
) -> io::Result<Acted> {
    match fault {
        Fault::None | Fault::HugeLine(_) | Fault::ListingFails => all(line, reply, pace).await,
        Fault::SlowHeader(delay) => {
            line.rest(Some(Instant::now() + delay)).await?;
            all(line, reply, pace).await
        }
        Fault::Status(status) => {
            let message = format!("a pretend backend was told to answer {status}");
            line.send(&error(kind, native, status, &message).bytes()).await?;
            Ok(Acted::Spoiled)
        }
        Fault::GarbageBody => {
            let whole = Whole { status: 200, media: media::JSON, body: GARBAGE_BODY.to_vec() };
            line.send(&whole.bytes()).await?;
            Ok(Acted::Spoiled)
        }
        Fault::Garbage => {
            line.send(GARBAGE).await?;
            Ok(Acted::Ruined)
        }
        Fault::CloseAtOnce => Ok(Acted::Ruined),
        Fault::Nothing => silence(line).await,
        Fault::NothingAfterHead => {
            line.send(&head_of(reply)).await?;
            silence(line).await
        }
        Fault::WrongLength => {
            let body = match reply {
                Reply::Whole(whole) => &whole.body[..],
                Reply::Stream(_) => GARBAGE_BODY,
            };
            let mut bytes = reply::head(200, media::JSON, Framing::Length(body.len() + MISSING_BYTES));
            bytes.extend_from_slice(body);
            line.send(&bytes).await?;
            Ok(Acted::Ruined)
        }
        Fault::HalfChunk => {
            line.send(&half_chunk(reply)).await?;
            Ok(Acted::Ruined)
        }
        Fault::CutAfter(tokens) => {
            some(line, reply, pace, tokens).await?;
            Ok(Acted::Ruined)
        }
        Fault::Stall(tokens) => {
            some(line, reply, pace, tokens).await?;
            silence(line).await
        }
        Fault::EndEarly(tokens) => {
            match reply {
                Reply::Stream(_) => {
                    some(line, reply, pace, tokens).await?;
                    line.send(LAST_CHUNK).await?;
                }
                Reply::Whole(whole) => {
                    let body = whole.body[..whole.body.len() / 2].to_vec();
                    line.send(&Whole { status: 200, media: whole.media, body }.bytes()).await?;
                }
            }
            Ok(Acted::Spoiled)
        }
    }
}

async fn all(line: &mut Line, reply: &Reply, pace: &Pace) -> io::Result<Acted> {
    match reply {
        Reply::Whole(whole) => {
            pause(line, Instant::now(), pace.first + pace.eval).await?;
            line.send(&whole.bytes()).await?;
        }
        Reply::Stream(script) if pace.burst => {
            pause(line, Instant::now(), pace.first).await?;
            line.send(script.all()).await?;
        }
        Reply::Stream(script) => {
            tokens(line, script, pace, script.tokens()).await?;
            line.send(script.closing()).await?;
        }
    }
    Ok(Acted::Whole)
}

/// Sends the head and the first `count` tokens; of a whole answer its head and half of its body.
async fn some(line: &mut Line, reply: &Reply, pace: &Pace, count: u32) -> io::Result<()> {
    match reply {
        Reply::Whole(whole) => {
            let bytes = whole.bytes();
            line.send(&bytes[..bytes.len() - whole.body.len().div_ceil(2)]).await
        }
        Reply::Stream(script) => tokens(line, script, pace, count as usize).await,
    }
}

/// Sends the head and the first `count` tokens of a stream, each when it is due.
async fn tokens(line: &mut Line, script: &Script, pace: &Pace, count: usize) -> io::Result<()> {
    let begun = Instant::now();
    pause(line, begun, pace.first).await?;
    if pace.burst {
        return line.send(script.until(count)).await;
    }
    line.send(script.until(count.min(1))).await?;
    let mut due = pace.first;
    for index in 2..=count.min(script.tokens()) {
        due += pace.gap;
        pause(line, begun, due).await?;
        line.send(script.token(index)).await?;
    }
    Ok(())
}

/// Rests until `delay` after `begun`; not at all for a delay of zero, which keeps plain cases cheap.
async fn pause(line: &mut Line, begun: Instant, delay: Duration) -> io::Result<()> {
    if delay.is_zero() { Ok(()) } else { line.rest(Some(begun + delay)).await }
}

/// Says nothing until the client leaves, which is the error this ends with.
async fn silence(line: &mut Line) -> io::Result<Acted> {
    line.rest(None).await.map(|()| Acted::Ruined)
}

fn head_of(reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Whole(whole) => whole.head(whole.body.len()),
        Reply::Stream(script) => script.head().to_vec(),
    }
}

/// A chunked head, the size of a first chunk, and half of that chunk.
fn half_chunk(reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Whole(whole) => {
            let mut bytes = reply::head(200, whole.media, Framing::Chunked);
            bytes.extend_from_slice(format!("{:x}\r\n", whole.body.len()).as_bytes());
            bytes.extend_from_slice(&whole.body[..whole.body.len() / 2]);
            bytes
        }
        Reply::Stream(script) => {
            let (before, first) = (script.until(0), script.until(1));
            // Half of a token's chunk is past its size line and short of its end.
            first[..before.len() + (first.len() - before.len()) / 2].to_vec()
        }
    }
}
