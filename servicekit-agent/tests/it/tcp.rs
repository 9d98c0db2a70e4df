//! The TCP probe against real sockets.

use servicekit_agent::probe::Tcp;
use servicekit_core::health::{Probe as _, Verdict};

use crate::support::{LONG, SHORT, clock, hold, serve};

#[tokio::test]
async fn a_port_that_accepts_passes() {
    let address = serve(hold).await;
    let verdict = Tcp::new(&address.to_string(), LONG, clock()).unwrap().check().await;
    assert_eq!(verdict, Verdict::Pass(format!("tcp {address}: connected")));
}

#[tokio::test]
async fn all_addresses_of_a_host_are_tried() {
    // `localhost` may be ::1 first, where nobody listens.
    let address = serve(hold).await;
    let target = format!("localhost:{}", address.port());
    let verdict = Tcp::new(&target, LONG, clock()).unwrap().check().await;
    assert!(verdict.passed(), "{verdict:?}");
}

#[tokio::test]
async fn a_closed_port_fails() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    drop(listener);
    let verdict = Tcp::new(&target, LONG, clock()).unwrap().check().await;
    assert!(!verdict.passed() && verdict.output().contains("refused"), "{verdict:?}");
}

#[tokio::test]
async fn a_full_queue_of_connections_runs_into_the_time_out() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Fill the queue: what does not get in stays in its own queue of half-open connections.
    let mut held = Vec::new();
    let probe = Tcp::new(&address.to_string(), SHORT, clock()).unwrap();
    for _ in 0..8 {
        let connect = tokio::net::TcpStream::connect(address);
        held.push(servicekit_core::clock::timeout(&*clock(), SHORT, connect).await);
        if held.last().unwrap().is_err() {
            break;
        }
    }
    let verdict = probe.check().await;
    assert!(!verdict.passed() && verdict.output().contains("no answer within"), "{verdict:?}");
}

#[test]
fn what_is_no_address_is_refused() {
    for (target, problem) in [
        ("localhost", "must be host:port"),
        (":80", "must be host:port"),
        ("::1:80", "IPv6 address in brackets"),
        ("host:0", "from 1 to 65535"),
        ("host:http", "from 1 to 65535"),
    ] {
        let message = Tcp::new(target, SHORT, clock()).unwrap_err().to_string();
        assert!(message.contains(problem), "{message}");
    }
    assert!(Tcp::new("[::1]:80", SHORT, clock()).is_ok());
}
