//! The HTTP probe against real sockets.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use servicekit_agent::probe::{Clients, Http, HttpOptions};
use servicekit_core::{
    Kind,
    health::{Probe as _, Verdict},
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer},
};

use crate::support::{LONG, SHORT, When, clock, hold, read_request, serve, serve_bytes, with_env};

fn options(url: impl Into<String>) -> HttpOptions {
    HttpOptions { timeout: LONG, ..HttpOptions::new(url) }
}

fn probe(options: HttpOptions) -> Http {
    Http::new(options, &mut Clients::default(), clock()).unwrap()
}

async fn check(options: HttpOptions) -> Verdict {
    probe(options).check().await
}

#[track_caller]
fn assert_fails(verdict: &Verdict, reason: &str) {
    assert!(!verdict.passed(), "{verdict:?}");
    assert!(verdict.output().contains(reason), "{verdict:?} does not say {reason:?}");
}

#[tokio::test]
async fn a_success_passes() {
    let address = serve_bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let verdict = check(options(format!("http://{address}/health"))).await;
    assert_eq!(verdict, Verdict::Pass(format!("GET http://{address}/health: 200 OK")));
}

#[tokio::test]
async fn only_expected_statuses_pass() {
    for (status, expect, passes) in [
        ("204 No Content", "200-299", true),
        ("304 Not Modified", "200-299", false),
        ("304 Not Modified", "200-399", true),
        ("404 Not Found", "200-399", false),
        ("500 Internal Server Error", "200-399", false),
        ("503 Service Unavailable", "503", true),
        ("200 OK", "503", false),
    ] {
        let address = serve_bytes(format!("HTTP/1.1 {status}\r\n\r\n")).await;
        let expect = expect.parse().unwrap();
        let url = format!("http://{address}/");
        let verdict = check(HttpOptions { expect, ..options(url) }).await;
        assert_eq!(verdict.passed(), passes, "{verdict:?}");
        assert!(verdict.output().contains(status), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_failure_says_what_the_service_said() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\n\r\n\n  no \x1b[31mquorum\nmore";
    let address = serve_bytes(answer).await;
    let verdict = check(options(format!("http://{address}/"))).await;
    assert_fails(&verdict, ": 503 Service Unavailable: no \u{fffd}[31mquorum");
    assert!(!verdict.output().contains("more"));
}

#[tokio::test]
async fn redirects_are_told_and_not_followed() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let address = serve(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            read_request(&mut stream).await;
            let answer = b"HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let verdict = check(options(format!("http://{address}/"))).await;
    assert_fails(&verdict, "302 Found to /again; redirects are not followed");
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn nobody_listening_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let verdict = check(options(format!("http://{address}/"))).await;
    assert_fails(&verdict, "Connection refused");
}

#[tokio::test]
async fn a_service_that_hangs_runs_into_the_time_out() {
    let address = serve(hold).await;
    let url = format!("http://{address}/");
    let verdict = check(HttpOptions { timeout: SHORT, ..options(url) }).await;
    assert_fails(&verdict, "no answer within 300ms");
}

#[tokio::test]
async fn a_listener_that_accepts_nobody_runs_into_the_time_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let verdict = check(HttpOptions { timeout: SHORT, ..options(url) }).await;
    assert_fails(&verdict, "no answer within 300ms");
}

#[tokio::test]
async fn dripping_headers_and_bodies_run_into_the_time_out() {
    for (head, reason) in [
        ("HTTP/1.1 200 OK\r\nx-slow: ", "no answer within 300ms"),
        ("HTTP/1.1 200 OK\r\n\r\n", "200 OK, but the body did not end within 300ms"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", "200 OK, but the body did not end"),
    ] {
        let dripped = Arc::new(AtomicUsize::new(0));
        let drops = dripped.clone();
        let address = serve(move |mut stream| {
            let drops = drops.clone();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(head.as_bytes()).await;
                while stream.write_all(b"x").await.is_ok() {
                    drops.fetch_add(1, Ordering::Relaxed);
                    clock().sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .await;
        let options = HttpOptions { timeout: SHORT, ..options(format!("http://{address}/")) };
        // On one thread: the client is served between two drops.
        let clock = Arc::new(When(move || dripped.load(Ordering::Relaxed) > 20));
        let probe = Http::new(options, &mut Clients::default(), clock).unwrap();
        assert_fails(&probe.check().await, reason);
    }
}

#[tokio::test]
async fn a_body_of_100_megabytes_fails_without_being_read() {
    for head in ["", "content-length: 104857600\r\n"] {
        let (sent, mut written) = mpsc::unbounded_channel();
        let address = serve(move |mut stream| {
            let sent = sent.clone();
            async move {
                read_request(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let megabyte = vec![b'x'; 1 << 20];
                let mut megabytes = 0;
                while megabytes < 100 && stream.write_all(&megabyte).await.is_ok() {
                    megabytes += 1;
                }
                let _ = sent.send(megabytes);
            }
        })
        .await;
        let verdict = check(options(format!("http://{address}/"))).await;
        assert_fails(&verdict, "200 OK, but the body is larger than 1024 KiB");
        // What was sent beyond the limit only filled the buffers of two sockets.
        assert!(written.recv().await.unwrap() < 50);
    }
}

#[tokio::test]
async fn endless_headers_fail() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"x-more: of the same\r\n").await.is_ok() {}
    })
    .await;
    let verdict = check(options(format!("http://{address}/"))).await;
    assert!(!verdict.passed(), "{verdict:?}");
}

#[tokio::test]
async fn answers_that_are_cut_short_fail() {
    for (answer, reason) in [
        ("", "closed"),
        ("HTTP/1.1 200 OK\r\ncontent-le", "closed"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
            "200 OK, but the body was cut short",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
            "200 OK, but the body was cut short",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP version"),
    ] {
        let address = serve_bytes(answer).await;
        assert_fails(&check(options(format!("http://{address}/"))).await, reason);
    }
}

#[tokio::test]
async fn what_is_compressed_stays_so_and_is_not_asked_for() {
    let (sent, mut requests) = mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let sent = sent.clone();
        async move {
            let _ = sent.send(read_request(&mut stream).await);
            // No gzip at all: whoever decompressed it would fail.
            let answer =
                b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbomb";
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let verdict = check(options(format!("http://{address}/"))).await;
    assert!(verdict.passed(), "{verdict:?}");
    assert!(!requests.recv().await.unwrap().contains("accept-encoding"));
}

#[tokio::test]
async fn headers_are_sent_and_secrets_are_not_shown() {
    let (sent, mut requests) = mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let sent = sent.clone();
        async move {
            let _ = sent.send(read_request(&mut stream).await);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        }
    })
    .await;
    let headers = vec![("Host".into(), "web.example".into()), ("X-Key".into(), "s3cret".into())];
    let url = format!("http://user:s3cret@{address}/health?key=s3cret#s3cret");
    let probe = probe(HttpOptions { headers, ..options(url) });
    let verdict = probe.check().await;
    let request = requests.recv().await.unwrap();
    for line in
        ["GET /health?key=s3cret ", "host: web.example", "x-key: s3cret", "authorization: Basic"]
    {
        assert!(request.contains(line), "{request}");
    }
    let shown = format!("{verdict:?} {probe:?}");
    assert!(verdict.passed() && !shown.contains("s3cret") && !shown.contains("user"), "{shown}");
}

#[tokio::test]
async fn every_probe_opens_a_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let address = serve(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            while !read_request(&mut stream).await.is_empty() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let probe = probe(options(format!("http://{address}/")));
    for _ in 0..3 {
        assert!(probe.check().await.passed());
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn no_proxy_of_the_environment_is_used() {
    if std::env::var_os("HTTP_PROXY").is_none() {
        let nowhere = [("HTTP_PROXY", "http://127.0.0.1:1"), ("http_proxy", "http://127.0.0.1:1")];
        let run = with_env("http::no_proxy_of_the_environment_is_used", &nowhere);
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{said}");
    }
    let address = serve_bytes("HTTP/1.1 200 OK\r\n\r\n").await;
    let verdict = check(options(format!("http://{address}/"))).await;
    assert!(verdict.passed(), "{verdict:?}");
}

#[tokio::test]
async fn certificates_are_verified_against_the_authorities_of_choice() {
    let names = vec!["127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                read_request(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await;
    let url = format!("https://{address}/");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(cert.pem().as_bytes()).unwrap();
    let ca = Some(file.path().to_owned());

    assert_fails(&check(options(&url)).await, "invalid peer certificate");
    let verdict = check(HttpOptions { ca: ca.clone(), ..options(&url) }).await;
    assert!(verdict.passed(), "{verdict:?}");
    let verdict = check(HttpOptions { insecure: true, ..options(&url) }).await;
    assert!(verdict.passed(), "{verdict:?}");
    let both = HttpOptions { ca, insecure: true, ..options(&url) };
    let error = Http::new(both, &mut Clients::default(), clock()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn what_cannot_be_used_is_named() {
    let base = || options("https://127.0.0.1/");
    let empty = tempfile::NamedTempFile::new().unwrap();
    let no_ca = Some(empty.path().to_owned());
    let missing = Some("/nonexistent/ca.pem".into());
    for (wrong, problem) in [
        (options("127.0.0.1:80"), "is no URL"),
        (options("ftp://user:s3cret@host/"), "begins with ftp:"),
        (HttpOptions { headers: vec![("a b".into(), "c".into())], ..base() }, "header \"a b\""),
        (HttpOptions { headers: vec![("a".into(), "s3cret\n".into())], ..base() }, "its value"),
        (HttpOptions { ca: missing, ..base() }, "/nonexistent/ca.pem: No such file"),
        (HttpOptions { ca: no_ca, ..base() }, "no certificate in it"),
    ] {
        let error = Http::new(wrong, &mut Clients::default(), clock()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let message = error.to_string();
        assert!(message.contains(problem) && !message.contains("s3cret"), "{message}");
    }
}
