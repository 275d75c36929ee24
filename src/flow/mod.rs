//! The use cases, written once over the ports: each is an `async fn` that asks `core` for decisions
//! and the ports for effects. No tokio: production and the simulator drive the same futures.

pub mod answer;
mod attempt;
pub mod audit;
mod deadline;
pub mod failure;
pub mod fleet;
pub mod flush;
pub mod follow;
mod headers;
pub mod infer;
mod life;
pub mod log;
mod news;
mod numbers;
pub mod overview;
mod pace;
pub mod pump;
mod refresh;
pub mod router;
pub mod seats;
mod story;
