//! The client against endpoints that do odd things on real sockets.

use core::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::PlainClient;
use crate::ports::{UpstreamError, UpstreamRequest, UpstreamResponse};

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    (listener, url)
}

fn client() -> PlainClient {
    PlainClient::new(Duration::from_secs(2), Duration::from_secs(60))
}

fn post(url: &str, body: Vec<u8>) -> UpstreamRequest {
    UpstreamRequest {
        method: Method::POST,
        url: url.into(),
        headers: HeaderMap::new(),
        body: Bytes::from(body),
    }
}

/// One request's head, and its body of `length` bytes.
async fn read_request(socket: &mut TcpStream, length: usize) -> String {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "the connection ended within a head");
    };
    while bytes.len() < end + length {
        assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "the connection ended within a body");
    }
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

async fn text(response: UpstreamResponse) -> Result<String, UpstreamError> {
    let chunks: Vec<_> = response.body.collect().await;
    let chunks: Result<Vec<_>, _> = chunks.into_iter().collect();
    Ok(String::from_utf8(chunks?.concat()).unwrap())
}

/// An endpoint that takes one connection, answers so many requests on it, and closes it.
fn answer_on_one(listener: TcpListener, requests: usize) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        for _ in 0..requests {
            read_request(&mut socket, 1).await;
            socket.write_all(OK).await.unwrap();
        }
    })
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn after_an_early_answer_nothing_else_is_sent_on_the_half_written_connection() {
    let (listener, url) = listen().await;
    let endpoint = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        read_request(&mut first, 0).await;
        first.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        // It goes on reading the body it will not use, as servers do that keep connections alive.
        let drained = tokio::spawn(async move { tokio::io::copy(&mut first, &mut tokio::io::sink()).await });
        let (mut second, _) = listener.accept().await.unwrap();
        let head = read_request(&mut second, 3).await;
        second.write_all(OK).await.unwrap();
        (head, drained.await)
    });
    let client = client();
    let refused = client.send(&post(&url, vec![b'a'; 20 << 20])).await.unwrap();
    assert_eq!(refused.status, 400);
    assert_eq!(text(refused).await.unwrap(), "no");
    let answered = client.send(&post(&url, b"abc".to_vec())).await.unwrap();
    assert_eq!(text(answered).await.unwrap(), "ok");
    let (head, _) = endpoint.await.unwrap();
    assert!(head.starts_with("POST /x HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn an_interim_answer_does_not_stop_the_body() {
    let (listener, url) = listen().await;
    let length = 8 << 20;
    let endpoint = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await.unwrap();
        read_request(&mut socket, length).await;
        socket.write_all(OK).await.unwrap();
        socket
    });
    let sent = tokio::time::timeout(Duration::from_secs(10), async {
        text(client().send(&post(&url, vec![b'a'; length])).await?).await
    });
    assert_eq!(sent.await.expect("the body is written to its end").unwrap(), "ok");
    endpoint.await.unwrap();
}

#[tokio::test]
async fn a_connection_the_endpoint_closed_while_idle_costs_the_client_nothing() {
    let (listener, url) = listen().await;
    let endpoint = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket, 1).await;
            socket.write_all(OK).await.unwrap();
        }
    });
    let client = client();
    for _ in 0..2 {
        let response = client.send(&post(&url, b"a".to_vec())).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "ok");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.await.unwrap();
}

#[tokio::test]
async fn idle_connections_are_used_again_and_dead_ones_swept_away() {
    let (listener, url) = listen().await;
    let endpoint = answer_on_one(listener, 3);
    let client = client();
    for _ in 0..3 {
        let response = client.send(&post(&url, b"a".to_vec())).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "ok");
        assert_eq!(client.pool.idle(), 1);
    }
    endpoint.await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.pool.close_idle();
    assert_eq!(client.pool.idle(), 0, "the endpoint closed it: nothing keeps the socket");
}

#[tokio::test]
async fn an_idle_connection_serves_whichever_thread_asks_next() {
    let (listener, url) = listen().await;
    let endpoint = answer_on_one(listener, 2);
    let client = client();
    let ask = async |client: PlainClient, url: &str| {
        let request = post(url, b"a".to_vec());
        text(client.send(&request).await?).await
    };
    assert_eq!(ask(client.clone(), &url).await.unwrap(), "ok");
    let runtime = tokio::runtime::Handle::current();
    let elsewhere = std::thread::spawn(move || {
        runtime.block_on(async {
            let answer = tokio::time::timeout(Duration::from_secs(10), ask(client, &url)).await;
            answer.expect("nobody answers on a second connection")
        })
    });
    endpoint.await.unwrap();
    assert_eq!(elsewhere.join().unwrap().unwrap(), "ok");
}
