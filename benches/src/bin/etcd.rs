//! The etcd store against etcd's own tools, on a server that this starts: lease cycles against the same requests sent by
//! bare `etcd-client`, whole processes against `etcdctl lock`, a hand-over among a hundred waiters, and ten thousand instances.
//!
//! ```sh
//! cargo build --release -p servicekit-cli && cargo run --release -p servicekit-benches --bin etcd
//! ```
//!
//! What is compared takes turns, so that a busy machine slows both.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, LeaseGrantOptions, PutOptions, Txn,
    TxnOp,
};
use futures_util::future::try_join;
use servicekit::{Clock as _, Label, clock::SystemClock};
use servicekit_benches::{
    Result, binary,
    stores::{cycles, instances, median, request, wait_for},
};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server,
};
use wait4::Wait4 as _;

#[tokio::main]
async fn main() -> Result<()> {
    let server = server::Etcd::start().ok_or("etcd is missing")?;
    let endpoint = server.endpoints();
    let url = format!("etcd://{endpoint}");
    let wanted = std::env::args().nth(1);
    let is_wanted = |part: &str| wanted.as_ref().is_none_or(|wanted| wanted == part);
    if is_wanted("cycles") {
        let backend = servicekit::connect(&url).await?;
        let client = Client::connect([&endpoint], None).await?;
        let mut lease = 0;
        cycles(&backend, CYCLES, async || {
            lease += 1;
            bare_cycle(&client, lease).await
        })
        .await?;
    }
    if is_wanted("processes") {
        processes(&url, &endpoint)?;
    }
    if is_wanted("hand-over") {
        hand_over("handed", &url, &endpoint).await?;
        // Where round trips take time, and the work of a hundred waiters on one machine does not.
        let proxy = Proxy::start(&endpoint).await;
        proxy.set(Mode::Delay(Duration::from_millis(20)));
        let far = proxy.endpoint();
        hand_over("far", &format!("etcd://{far}"), &far).await?;
    }
    if is_wanted("instances") {
        instances(&url, WATCHERS).await?;
    }
    Ok(())
}

const CYCLES: usize = 50;
const WATCHERS: u32 = 100;

/// The requests of a cycle, with values of the same sizes: a lease and the head, the ticket, the head; the queue and the
/// ticket's end, the head, and the lease given back.
async fn bare_cycle(client: &Client, lease: i64) -> Result<()> {
    let (ticket, head) = ("/bare/default/lease/bench/t-123", "/bare/default/lease/bench/head");
    let mut kv = client.kv_client();
    let put = |key: &str, size: usize, lease: i64| {
        let options = PutOptions::new().with_lease(lease).with_prev_key();
        let compare = Compare::mod_revision(key, CompareOp::Greater, -1);
        let put = TxnOp::put(key, vec![b'x'; size], Some(options));
        Txn::new().when([compare]).and_then([put])
    };
    let (mut granting, mut getting) = (client.lease_client(), client.kv_client());
    let granted = granting.grant(30, Some(LeaseGrantOptions::new().with_id(lease)));
    try_join(granted, getting.get(head, None)).await?;
    kv.txn(put(ticket, 240, lease)).await?;
    kv.txn(put(head, 1000, 0)).await?;
    let options = GetOptions::new().with_prefix();
    let queue = TxnOp::get("/bare/default/lease/bench/", Some(options));
    let listed = getting.txn(Txn::new().and_then([queue]));
    let compare = Compare::mod_revision(ticket, CompareOp::Greater, -1);
    let delete = TxnOp::delete(ticket, Some(DeleteOptions::new().with_prev_key()));
    try_join(listed, kv.txn(Txn::new().when([compare]).and_then([delete]))).await?;
    let mut revoking = client.lease_client();
    tokio::spawn(async move { revoking.revoke(lease).await });
    kv.txn(put(head, 1000, 0)).await?;
    Ok(())
}

const RUNS: usize = 60;

#[derive(Default)]
struct Usage {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
    memory: u64,
}

impl Usage {
    fn of(&mut self, command: &mut Command) -> Result<()> {
        let began = SystemClock.now();
        let used = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?.wait4()?;
        if !used.status.success() {
            return Err(format!("{command:?} failed: {}", used.status).into());
        }
        self.wall.push(SystemClock.now().since(began));
        self.cpu.push(used.rusage.utime + used.rusage.stime);
        self.memory = self.memory.max(used.rusage.maxrss);
        Ok(())
    }
}

fn processes(url: &str, endpoint: &str) -> Result<()> {
    let mut ours = Command::new(binary()?);
    ours.args(["acquire-lease", "--label", "x", "--backend", url, "--", "true"]);
    let mut theirs = Command::new("etcdctl");
    theirs.env("ETCDCTL_API", "3").args(["--endpoints", endpoint, "lock", "x", "true"]);
    let (mut our, mut their) = (Usage::default(), Usage::default());
    for _ in 0..RUNS {
        our.of(&mut ours)?;
        their.of(&mut theirs)?;
    }
    let (wall, cpu) = (median(&mut our.wall), median(&mut our.cpu));
    let (their_wall, their_cpu) = (median(&mut their.wall), median(&mut their.cpu));
    println!(
        "acquire-lease -- true:           {wall:8.2} ms, {cpu:.2} ms of CPU, {} MB",
        our.memory / 1_000_000
    );
    println!(
        "etcdctl lock x true:             {their_wall:8.2} ms, {their_cpu:.2} ms of CPU, {} MB",
        their.memory / 1_000_000
    );
    println!("wall time and CPU against it:    {:8.2}, {:.2}", wall / their_wall, cpu / their_cpu);
    Ok(())
}

const WAITERS: usize = 100;
const HAND_OVERS: usize = 50;

async fn hand_over(lease: &str, url: &str, endpoint: &str) -> Result<()> {
    let lease: Label = lease.parse()?;
    let clock = SystemClock;
    let backend = servicekit::connect(url).await?;
    let (mut ticket, _) = backend.leases.join(&lease, &request("first")?).await?;
    let mut waiting = Vec::new();
    for i in 0..WAITERS {
        let leases = servicekit::connect(url).await?.leases;
        waiting.push(wait_for(&leases, &lease, &format!("w{i}")).await?);
    }
    let mut client = Client::connect([endpoint], None).await?.kv_client();
    let (mut times, mut from_leave, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    clock.sleep(Duration::from_secs(1)).await;
    for (next, granted) in waiting.into_iter().take(HAND_OVERS) {
        let began = clock.now();
        client.put("/bare/trip", "x", None).await?;
        trips.push(clock.now().since(began));
        let began = clock.now();
        backend.leases.leave(&ticket).await?;
        let left = clock.now();
        let granted = granted.await?;
        times.push(granted.since(left));
        from_leave.push(granted.since(began));
        ticket = next;
    }
    let trip = median(&mut trips);
    let (time, from_leave) = (median(&mut times), median(&mut from_leave));
    println!("bare put:                        {trip:8.2} ms");
    println!("grant to the next of 100 waiters:{time:8.2} ms, {:.1} bare puts", time / trip);
    println!(
        "with leaving before it:          {from_leave:8.2} ms, {:.1} bare puts",
        from_leave / trip
    );
    Ok(())
}
