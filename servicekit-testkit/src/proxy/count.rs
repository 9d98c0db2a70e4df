use std::sync::{Arc, Mutex, PoisonError};

/// What went through a proxy of the requests of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were begun.
    pub requests: u64,
    /// Times that requests were begun after an answer had come: one after the other.
    pub round_trips: u64,
    /// Whether an answer came since a request was begun.
    answered: bool,
}

pub(super) type Shared = Arc<Mutex<Count>>;

impl Count {
    /// Nothing yet; what is begun first is one after the other.
    pub(super) fn begun() -> Self {
        Self { answered: true, ..Self::default() }
    }

    /// Prints it, and fails when it is more than this.
    ///
    /// # Panics
    ///
    /// Then.
    #[track_caller]
    pub fn assert_within(self, what: &str, round_trips: u64, requests: u64) {
        println!("{what}: {} / {}", self.round_trips, self.requests);
        assert!(
            self.round_trips <= round_trips && self.requests <= requests,
            "{what}: {self:?}, budget {round_trips} / {requests}"
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    Request,
    Answer,
}

/// Finds the frames of HTTP/2 (RFC 9113, section 4.1), or the messages of HTTP/1.1 with bodies of a told length, in a
/// stream of bytes that comes in pieces.
pub(super) struct Frames {
    way: Way,
    /// Whether it is HTTP/1.1, which the first bytes tell.
    messages: Option<bool>,
    /// Bytes to pass over: the rest of a frame or of a body, or the preface of a client.
    skip: usize,
    head: Vec<u8>,
}

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
const HEADERS: u8 = 1;

impl Frames {
    pub(super) fn new(way: Way) -> Self {
        Self { way, messages: None, skip: 0, head: Vec::with_capacity(HEAD) }
    }

    pub(super) fn read(&mut self, mut bytes: &[u8], count: &Shared) {
        let messages = match self.messages {
            Some(messages) => messages,
            None => self.begin(bytes),
        };
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = &bytes[passed..];
            if bytes.is_empty() {
                return;
            }
            let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
            bytes = if messages {
                self.message(bytes, &mut count)
            } else {
                self.frame(bytes, &mut count)
            };
        }
    }

    /// Tells the protocol from the first bytes.
    fn begin(&mut self, bytes: &[u8]) -> bool {
        let messages = match self.way {
            Way::Request => !bytes.starts_with(b"PRI"),
            Way::Answer => bytes.starts_with(b"HTTP/"),
        };
        if self.way == Way::Request && !messages {
            self.skip = PREFACE;
        }
        self.messages = Some(messages);
        messages
    }

    /// Takes bytes of the head of a frame; returns the rest.
    fn frame<'b>(&mut self, bytes: &'b [u8], count: &mut Count) -> &'b [u8] {
        let taken = (HEAD - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..taken]);
        if let &[a, b, c, kind, ..] = &*self.head
            && self.head.len() == HEAD
        {
            self.head.clear();
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind == HEADERS {
                self.began(count);
            }
        }
        &bytes[taken..]
    }

    /// Takes bytes of the head of a message; returns the rest.
    fn message<'b>(&mut self, bytes: &'b [u8], count: &mut Count) -> &'b [u8] {
        for (i, byte) in bytes.iter().enumerate() {
            self.head.push(*byte);
            if self.head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                self.skip = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
                self.head.clear();
                self.began(count);
                return &bytes[i + 1..];
            }
        }
        &[]
    }

    fn began(&self, count: &mut Count) {
        match self.way {
            Way::Request => {
                count.requests += 1;
                count.round_trips += u64::from(count.answered);
                count.answered = false;
            }
            Way::Answer => count.answered = true,
        }
    }
}
