use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use servicekit_core::{
    Clock, Invalid,
    clock::timeout,
    health::{Probe, Verdict},
};
use tokio::net::{TcpStream, lookup_host};

/// Connects to a port, and hangs up.
#[derive(Debug)]
pub struct Tcp {
    target: String,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

impl Tcp {
    /// Probes `target`, a `host:port`, for at most `timeout` in all, however many addresses the host has.
    ///
    /// # Errors
    ///
    /// When the target has no host or no port. A host that is not known is what a probe finds out.
    pub fn new(target: &str, timeout: Duration, clock: Arc<dyn Clock>) -> Result<Self, Invalid> {
        let invalid = |problem| Invalid::new("address", target, problem);
        let (host, port) = target.rsplit_once(':').ok_or_else(|| invalid("must be host:port"))?;
        if !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err(invalid("the port must be a number from 1 to 65535"));
        }
        if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
            return Err(invalid("must be host:port, an IPv6 address in brackets"));
        }
        Ok(Self { target: target.into(), timeout, clock })
    }

    async fn connect(&self) -> io::Result<()> {
        let deadline = self.clock.now() + self.timeout;
        let addresses: Vec<_> = lookup_host(&self.target).await?.collect();
        let mut last = io::Error::other("the host has no address");
        for (i, address) in addresses.iter().enumerate() {
            // A share for each, so that one address that swallows packets does not hide the others.
            let shares = u32::try_from(addresses.len() - i).unwrap_or(u32::MAX);
            let share = deadline.since(self.clock.now()) / shares;
            match timeout(&*self.clock, share, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::other(format!("no answer within {:?}", self.timeout)),
            }
        }
        Err(last)
    }
}

#[async_trait]
impl Probe for Tcp {
    async fn check(&self) -> Verdict {
        let Self { target, timeout: limit, clock } = self;
        match timeout(&**clock, *limit, self.connect()).await {
            Ok(Ok(())) => Verdict::Pass(format!("tcp {target}: connected")),
            Ok(Err(error)) => Verdict::Fail(format!("tcp {target}: {error}")),
            Err(_) => Verdict::Fail(format!("tcp {target}: no answer within {limit:?}")),
        }
    }
}
