//! Backends over HTTP: one pooled reqwest client for `https`, the lean client beside it for `http`.
//!
//! Redirects are not followed (a router does not leave its endpoints), no proxy of the environment
//! is used, and small packets are never held back (`TCP_NODELAY`: forgetting it costs 44 ms per
//! streamed answer).

use core::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, redirect};
use thiserror::Error;

use super::h1::PlainClient;
use crate::ports::{BoxFuture, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

/// How long an idle connection to an endpoint is kept: shorter than the 75 s after which common
/// servers close theirs, so that the router is the one to close.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Endpoints over HTTP.
#[derive(Clone, Debug)]
pub struct HttpUpstream {
    plain: PlainClient,
    tls: Client,
}

/// The client could not be made.
#[derive(Debug, Error)]
#[error("the HTTP client cannot be set up: {0}")]
pub struct SetupError(#[from] reqwest::Error);

impl HttpUpstream {
    /// A client whose connections must stand within `connect_timeout`.
    pub fn new(connect_timeout: Duration) -> Result<Self, SetupError> {
        install_tls();
        let tls = Client::builder()
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(IDLE_MAX)
            .tcp_nodelay(true)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(HttpUpstream { plain: PlainClient::new(connect_timeout, IDLE_MAX), tls })
    }
}

/// Makes ring the process's TLS provider, unless it has one. Every HTTP client of this process needs one.
pub fn install_tls() {
    // Refused only when another is installed, which will do as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Upstream for HttpUpstream {
    fn send(&self, request: UpstreamRequest) -> BoxFuture<'_, Result<UpstreamResponse, UpstreamError>> {
        if PlainClient::speaks(&request.url) {
            return Box::pin(async move { self.plain.send(&request).await });
        }
        Box::pin(async move {
            let UpstreamRequest { method, url, headers, body } = request;
            let mut request = self.tls.request(method, url).headers(headers);
            if !body.is_empty() {
                request = request.body(body);
            }
            let mut response = request.send().await.map_err(reason)?;
            let status = response.status();
            let headers = core::mem::take(response.headers_mut());
            let body = Box::pin(response.bytes_stream().map(|chunk| chunk.map_err(reason)));
            Ok(UpstreamResponse { status, headers, body })
        })
    }
}

/// reqwest's error as the port's, with the innermost cause as its sentence (the outer ones repeat
/// the URL, which may carry what does not belong into a client's answer).
fn reason(error: reqwest::Error) -> UpstreamError {
    let mut innermost: &dyn std::error::Error = &error;
    let mut protocol = false;
    while let Some(source) = innermost.source() {
        innermost = source;
        protocol |= innermost.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
    }
    let why = innermost.to_string();
    if error.is_connect() || error.is_builder() {
        UpstreamError::Connect(why)
    } else if protocol {
        UpstreamError::Protocol(why)
    } else {
        UpstreamError::Broken(why)
    }
}
