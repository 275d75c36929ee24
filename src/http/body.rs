//! A request's body, whole, within its limits of size and patience.

use core::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use thiserror::Error;

/// Of a body that is too large, so much more is taken before it is refused ...
const LINGER_BYTES: usize = 1 << 20;

/// ... and for so long.
const LINGER: Duration = Duration::from_secs(1);

/// Why there is no body to work with.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error(
        "the request body is larger than {max} bytes; `body_limit_bytes` in the configuration sets the limit"
    )]
    TooLarge { max: usize },
    #[error("the request body did not arrive: nothing came for {} s", .waited.as_secs_f64())]
    TooSlow { waited: Duration },
    #[error("the request body broke off: {0}")]
    Broken(axum::Error),
}

impl BodyError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            BodyError::TooLarge { .. } => "body_too_large",
            BodyError::TooSlow { .. } => "body_too_slow",
            BodyError::Broken(_) => "body_broken",
        }
    }
}

/// Takes what a client is still sending, within limits: closed while it writes, it might see a broken
/// connection instead of the answer that says why.
async fn linger(body: &mut Body) {
    let taking = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > LINGER_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, taking).await;
}

/// Reads the body. A length announced beyond `max` is refused before a byte is read; a client that
/// pauses longer than `patience` is given up.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max: usize,
    patience: Duration,
) -> Result<Bytes, BodyError> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(BodyError::TooLarge { max });
    }
    // Most bodies come in one frame, which is then passed on without a copy.
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut length = 0;
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await;
        let Some(frame) = frame.map_err(|_| BodyError::TooSlow { waited: patience })? else { break };
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else { continue };
        length += data.len();
        if length > max {
            linger(&mut body).await;
            return Err(BodyError::TooLarge { max });
        }
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.reserve(announced.and_then(|n| usize::try_from(n).ok()).unwrap_or(0).max(length));
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}
