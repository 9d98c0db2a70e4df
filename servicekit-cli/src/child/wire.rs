//! What the parent and the guard say to each other: one small JSON document per packet of a socket pair.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Seek as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::MemfdFlags,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use servicekit::Instant;
use tokio::io::{Interest, unix::AsyncFd};

/// What the guard is to do. It travels in a file of its own, because a command line can be longer than a packet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) command: Vec<OsString>,
    /// Variables besides those of the guard.
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) deadline: Deadline,
    pub(super) kill_after: Duration,
}

/// What the parent tells the guard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The lease stands until then.
    Arm(Deadline),
    /// Pass this signal on.
    Signal(i32),
    /// The lease is lost.
    Stop,
    /// The lease was given back, and the child runs on.
    Disarm,
}

/// What the guard tells the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    Started {
        pid: u32,
    },
    CannotStart {
        errno: Option<i32>,
    },
    /// The child has ended by itself, or by a signal that was passed on, and so has all that it started.
    Exited {
        code: u8,
    },
    /// The child, and all that it started, was ended because the lease was.
    Stopped,
}

/// A moment on the boot clock, which both ends share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Deadline {
    boottime_ns: u64,
}

/// One end of the socket pair.
#[derive(Debug)]
pub(super) struct Link(AsyncFd<OwnedFd>);

impl Link {
    /// The parent's end, and the one that becomes the guard's standard input.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Self::new(ours)?, theirs))
    }

    // Its replacement is `unsafe`, for types that may close their descriptor meanwhile; an `OwnedFd` does not.
    #[expect(deprecated, reason = "sound for an OwnedFd, and the replacement is unsafe")]
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE;
        Ok(Self(AsyncFd::with_interest(socket, interest)?))
    }

    /// Sends without waiting: an end that is stopped must not hold up the other.
    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        rustix::net::send(&self.0, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// The next message; `None` when the other end is gone.
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// A message that has arrived already, though the event loop may not have noticed yet.
    pub(super) fn arrived<T: DeserializeOwned>(&self) -> Option<T> {
        receive(self.0.get_ref()).ok().flatten()
    }

    /// Hands over the task, and the standard input that its command is to have.
    pub(super) fn send_task(&self, task: &Task, stdin: BorrowedFd<'_>) -> io::Result<()> {
        let mut file = File::from(rustix::fs::memfd_create("task", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(task)?)?;
        file.rewind()?;
        let files = [file.as_fd(), stdin];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let packet = [IoSlice::new(b"task")];
        rustix::net::sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The task, and the standard input for its command; `None` when the other end is gone.
    pub(super) async fn receive_task(&self) -> io::Result<Option<(Task, OwnedFd)>> {
        let files = self.0.async_io(Interest::READABLE, receive_files).await?;
        let mut files = files.into_iter();
        let (Some(task), Some(stdin)) = (files.next(), files.next()) else {
            return Ok(None);
        };
        Ok(Some((serde_json::from_reader(io::BufReader::new(File::from(task)))?, stdin)))
    }
}

impl From<Instant> for Deadline {
    fn from(moment: Instant) -> Self {
        let since_boot = moment.since_boot().as_nanos();
        Self { boottime_ns: u64::try_from(since_boot).unwrap_or(u64::MAX) }
    }
}

impl From<Deadline> for Instant {
    fn from(deadline: Deadline) -> Self {
        Self::from_boot(Duration::from_nanos(deadline.boottime_ns))
    }
}

fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<T>> {
    let mut packet = [0; 256];
    let mut receive = || rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT);
    let (_, length) = match receive() {
        // The other end left without reading all; what it had sent before is still to be read.
        Err(Errno::CONNRESET) => receive()?,
        other => other?,
    };
    match packet.get(..length) {
        Some([]) => Ok(None),
        Some(message) => Ok(Some(serde_json::from_slice(message)?)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn receive_files(socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut packet = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_also_from_an_end_that_left_without_reading() {
        let (parent, other) = Link::pair().unwrap();
        let guard = Link::new(other).unwrap();
        parent.send(&Order::Stop).unwrap();
        guard.send(&Report::Started { pid: 7 }).unwrap();
        guard.send(&Report::Exited { code: 3 }).unwrap();
        drop(guard);
        assert!(matches!(parent.receive().await.unwrap(), Some(Report::Started { pid: 7 })));
        assert!(matches!(parent.receive().await.unwrap(), Some(Report::Exited { code: 3 })));
        assert!(parent.receive::<Report>().await.unwrap().is_none());
        assert!(parent.send(&Order::Stop).is_err());
    }

    #[tokio::test]
    async fn a_task_of_any_size_arrives_with_its_standard_input() {
        let (parent, other) = Link::pair().unwrap();
        let guard = Link::new(other).unwrap();
        let deadline = Instant::from_boot(Duration::new(5, 7));
        let task = Task {
            command: vec!["x".repeat(1 << 20).into(), "\u{1f980}".into(), "".into()],
            deadline: deadline.into(),
            kill_after: Duration::from_millis(1500),
            env: vec![("TOKEN".into(), "7".into())],
        };
        let stdin = File::open("/dev/null").unwrap();
        parent.send_task(&task, stdin.as_fd()).unwrap();
        let (received, stdin) = guard.receive_task().await.unwrap().unwrap();
        assert_eq!(received.command, task.command);
        assert_eq!(Instant::from(received.deadline), deadline);
        assert_eq!((received.kill_after, received.env), (task.kill_after, task.env));
        assert!(File::from(stdin).metadata().unwrap().len() == 0);
        drop(parent);
        assert!(guard.receive_task().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        let (parent, other) = Link::pair().unwrap();
        let guard = Link::new(other).unwrap();
        for packet in [&b"{}"[..], b"\"Arm\"", b"\xff", &[b' '; 1000]] {
            rustix::net::send(&parent.0, packet, SendFlags::empty()).unwrap();
            assert!(guard.receive::<Order>().await.is_err());
        }
    }
}
