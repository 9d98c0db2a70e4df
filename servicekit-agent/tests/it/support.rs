//! Servers that behave as badly as a test needs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use servicekit_core::{Clock, Instant, Timestamp, clock::SystemClock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Longer than anything that is expected to happen may take.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// The time-out of probes that are expected to run into it.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A clock on which every pause ends as soon as a condition holds: a time-out that strikes at the right moment, however
/// busy the machine is.
pub(crate) struct When<F>(pub(crate) F);

impl<F> std::fmt::Debug for When<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("When")
    }
}

#[async_trait::async_trait]
impl<F: Fn() -> bool + Send + Sync + 'static> Clock for When<F> {
    fn now(&self) -> Instant {
        clock().now()
    }

    fn wall(&self) -> Timestamp {
        clock().wall()
    }

    async fn sleep(&self, _: Duration) {
        while !self.0() {
            clock().sleep(Duration::from_millis(5)).await;
        }
    }

    async fn sleep_until(&self, _: Instant) {
        self.sleep(Duration::ZERO).await;
    }
}

/// Hands every connection to `handler`, for as long as the runtime lives.
pub(crate) async fn serve<F>(handler: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handler(stream));
        }
    });
    address
}

/// Keeps a connection open without a word.
pub(crate) async fn hold(stream: TcpStream) {
    std::future::pending::<()>().await;
    drop(stream);
}

/// Reads a request and answers with these bytes, then closes.
pub(crate) async fn serve_bytes(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer: Arc<[u8]> = answer.into().into();
    serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(&answer).await;
        }
    })
    .await
}

/// The head of a request, as text.
pub(crate) async fn read_request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Runs the test again with this in its environment, in another process: nobody may change the environment of this one.
pub(crate) fn with_env(test: &str, variables: &[(&str, &str)]) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}
