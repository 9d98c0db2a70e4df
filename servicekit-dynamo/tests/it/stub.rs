//! A server that says what a test wants said: what DynamoDB Local never says.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use servicekit_core::store::{Expect, Keep, Key, Put, WriteId};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The time, as an answer tells it.
pub(crate) const DATE: &str = "Sat, 21 Nov 2026 11:00:00 GMT";

/// A table that is fit for use, as `DescribeTable` shows it.
pub(crate) const TABLE: &str = r#"{"Table":{"TableName":"fleet","TableStatus":"ACTIVE",
    "AttributeDefinitions":[{"AttributeName":"group","AttributeType":"S"},{"AttributeName":"name","AttributeType":"S"}],
    "KeySchema":[{"AttributeName":"group","KeyType":"HASH"},{"AttributeName":"name","KeyType":"RANGE"}]}}"#;

/// What is put into it.
pub(crate) fn put(key: Key) -> Put {
    Put {
        key,
        value: (*b"{}").into(),
        expect: Expect::Absent,
        keep: Keep::Durable,
        write: WriteId::new("mine"),
    }
}

#[derive(Clone)]
pub(crate) enum Reply {
    /// A status and a body.
    Say(u16, String),
    /// Nothing, ever.
    Hang,
    /// The end of the connection.
    Close,
    /// The beginning of an answer, and then that.
    BreakOff,
}

impl Reply {
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let json = format!(
            r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"{message}"}}"#
        );
        Self::Say(status, json)
    }
}

/// What was asked for, and the headers of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) action: String,
    pub(crate) headers: BTreeMap<String, String>,
}

pub(crate) struct Stub {
    pub(crate) endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Stub {
    /// Answers every action with what `reply` says, which is told how many were asked before; and with this `Date`.
    pub(crate) async fn start(
        date: &str,
        reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, date, reply) = (asked.clone(), date.to_owned(), Arc::new(reply));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, date, reply) = (shared.clone(), date.clone(), reply.clone());
                tokio::spawn(async move { serve(stream, &shared, &date, &*reply).await });
            }
        });
        Self { endpoint, asked, accepting }
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    asked: &Mutex<Vec<Asked>>,
    date: &str,
    reply: &(dyn Fn(&str, usize) -> Reply + Send + Sync),
) -> Option<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                _ if line.trim_end().is_empty() => break,
                Some((name, value)) => drop(headers.insert(name.to_lowercase(), value.to_owned())),
                None => {}
            }
        }
        let length = headers.get("content-length")?.parse().ok()?;
        read.read_exact(&mut vec![0; length]).await.ok()?;
        let action = headers.get("x-amz-target")?.rsplit('.').next()?.to_owned();
        let before = {
            let mut asked = asked.lock().unwrap();
            asked.push(Asked { action: action.clone(), headers });
            asked.iter().filter(|asked| asked.action == action).count() - 1
        };
        match reply(&action, before) {
            Reply::Close => return None,
            Reply::BreakOff => {
                let head = "HTTP/1.1 200 X\r\nContent-Length: 500\r\n\r\n{\"It";
                write.write_all(head.as_bytes()).await.ok()?;
                return None;
            }
            Reply::Hang => std::future::pending().await,
            Reply::Say(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.0\r\nDate: {date}\r\n\
                     Content-Length: {}\r\n\r\n",
                    body.len()
                );
                write.write_all((head + &body).as_bytes()).await.ok()?;
            }
        }
    }
}
