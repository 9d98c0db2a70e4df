//! Something that answers as a test wants.

use std::{net::Ipv4Addr, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A status, headers and a body.
pub(crate) type Reply = (u16, &'static str, &'static str);

/// What is read of the design document where it is as it should be.
pub(crate) const DESIGN: Reply =
    (200, "", r#"{"_rev":"1-a","validate_doc_update":"function () {}"}"#);

/// A server that answers each request, named as `GET /path`, and with its cookie, as `reply` says.
pub(crate) async fn stub(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let reply = Arc::new(reply);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let reply = reply.clone();
            tokio::spawn(async move { answer(stream, &*reply).await });
        }
    });
    endpoint
}

async fn answer(stream: TcpStream, reply: &(impl Fn(&str, &str) -> Reply + Sync)) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length, mut cookie) = (String::new(), 0, String::new());
        stream.read_line(&mut first).await.ok()?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            match line.split_once(": ") {
                Some((name, told)) if name.eq_ignore_ascii_case("content-length") => {
                    length = told.parse().ok()?;
                }
                Some((name, told)) if name.eq_ignore_ascii_case("cookie") => {
                    told.clone_into(&mut cookie)
                }
                _ => {}
            }
        }
        stream.read_exact(&mut vec![0; length]).await.ok()?;
        let (status, headers, body) = reply(first.rsplit_once(' ')?.0, &cookie);
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        stream.get_mut().write_all(head.as_bytes()).await.ok()?;
    }
}
