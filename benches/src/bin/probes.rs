//! 1,000 HTTP probes a second: the CPU that one agent needs for them, and what prometheus-blackbox-exporter needs.
//!
//! ```sh
//! sudo apt-get install --no-install-recommends prometheus-blackbox-exporter
//! cargo run --release -p servicekit-benches --bin probes
//! ```
//!
//! Both probe the same local server, a new connection for each probe, one after the other in one run. The figures are those
//! of the whole process, from its start to its end; the server, and whoever asks the exporter, are in this process.

use std::{
    env,
    error::Error,
    io::Write as _,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use servicekit::{
    Backend, Clock as _, Env, Namespace,
    agent::{
        Agent, Options, Service,
        probe::{Clients, Http, HttpOptions},
    },
    clock::SystemClock,
    store::{Limits, Memory, Profile},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use wait4::{ResourceUsage, Wait4 as _};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SERVICES: u32 = 1_000;
const EXPORTER: &str = "prometheus-blackbox-exporter";
/// How many connections ask the exporter; Prometheus keeps one for each target.
const SCRAPERS: u32 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--agent", server, time] => run_agent(server, Duration::from_secs(time.parse()?)).await,
        ["--seconds", time] => compare(Duration::from_secs(time.parse()?)).await,
        [] => compare(Duration::from_secs(20)).await,
        _ => Err("usage: probes [--seconds N]".into()),
    }
}

async fn compare(time: Duration) -> Result<()> {
    let answered = Arc::new(AtomicU64::new(0));
    let server = serve(answered.clone())?;

    let seconds = time.as_secs().to_string();
    let agent = Command::new(env::current_exe()?)
        .args(["--agent", &server.to_string(), &seconds])
        .spawn()?;
    let agent = Figures::of("agent", agent, &answered).await?;

    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut config = tempfile::NamedTempFile::new()?;
    config.write_all(b"modules: {http_2xx: {prober: http, timeout: 2s}}\n")?;
    let mut exporter = Command::new(EXPORTER)
        .arg(format!("--config.file={}", config.path().display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!("cannot run {EXPORTER}: {error}; install it: sudo apt-get install {EXPORTER}")
        })?;
    let scraped = scrape(SocketAddr::from(([127, 0, 0, 1], port)), server, time).await;
    exporter.kill()?;
    scraped?;
    let exporter = Figures::of(EXPORTER, exporter, &answered).await?;

    let expected = u64::from(SERVICES) * time.as_secs();
    for Figures { name, probes, .. } in [&agent, &exporter] {
        if *probes < expected * 9 / 10 || *probes > expected * 11 / 10 {
            return Err(format!("{name} probed {probes} times instead of {expected}").into());
        }
    }
    println!("{:30} {:>8} {:>10} {:>12} {:>8}", "", "probes", "CPU s", "us a probe", "RSS MB");
    agent.print();
    exporter.print();
    let ratio = agent.cpu.as_secs_f64() / exporter.cpu.as_secs_f64();
    println!("the agent needs {ratio:.2} of the exporter's CPU");
    if ratio < 1.0 { Ok(()) } else { Err("the agent needs more CPU than the exporter".into()) }
}

/// What a process needed.
struct Figures {
    name: &'static str,
    cpu: Duration,
    probes: u64,
    rss: u64,
}

impl Figures {
    /// Waits for the end of a process; what the server answered since the last time was for it.
    async fn of(name: &'static str, mut child: Child, answered: &AtomicU64) -> Result<Self> {
        let ended = tokio::task::spawn_blocking(move || child.wait4()).await??;
        let ResourceUsage { utime, stime, maxrss } = ended.rusage;
        let probes = answered.swap(0, Ordering::Relaxed);
        Ok(Self { name, cpu: utime + stime, probes, rss: maxrss })
    }

    fn print(&self) {
        let Self { name, cpu, probes, rss } = self;
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let each = cpu.as_secs_f64() * 1e6 / *probes as f64;
        let (cpu, rss) = (cpu.as_secs_f64(), rss >> 20);
        println!("{name:30} {probes:8} {cpu:10.2} {each:12.0} {rss:8}");
    }
}

/// Probes the server through an agent on a store in memory.
async fn run_agent(server: &str, time: Duration) -> Result<()> {
    let env = Env::system();
    let store = Arc::new(Memory::new(env.clone(), Profile::Server));
    let backend =
        Backend::over("memory", store, Namespace::default(), env.clone(), Limits::default());
    let mut clients = Clients::default();
    let mut services = Vec::new();
    for i in 0..SERVICES {
        let options = HttpOptions::new(format!("http://{server}/health"));
        let probe = Http::new(options, &mut clients, env.clock.clone())?;
        services.push(Service {
            probes: vec![Arc::new(probe)],
            interval: Duration::from_secs(1),
            ..Service::new("web".parse()?, format!("web-{i}").parse()?, "127.0.0.1")
        });
    }
    let options = Options { node: "bench".into(), ttl: Duration::from_secs(15) };
    let agent = Agent::new(backend.registry, backend.leases, env.clone(), options);
    let mut up = 0;
    agent.run(services, env.clock.sleep(time), |_| up += 1).await;
    if up == SERVICES { Ok(()) } else { Err(format!("{up} changes of {SERVICES}").into()) }
}

/// Asks the exporter to probe the server, as often as the agent does.
async fn scrape(exporter: SocketAddr, server: SocketAddr, time: Duration) -> Result<()> {
    let deadline = SystemClock.now() + Duration::from_secs(10);
    while TcpStream::connect(exporter).await.is_err() {
        if SystemClock.now() > deadline {
            return Err("the exporter does not listen".into());
        }
        SystemClock.sleep(Duration::from_millis(20)).await;
    }
    let pause = Duration::from_secs(1) * SCRAPERS / SERVICES;
    let mut scrapers = JoinSet::new();
    for i in 0..SCRAPERS {
        scrapers.spawn(scrape_one(exporter, server, pause * i / SCRAPERS, pause, time));
    }
    while let Some(scraper) = scrapers.join_next().await {
        scraper??;
    }
    Ok(())
}

async fn scrape_one(
    exporter: SocketAddr,
    server: SocketAddr,
    delay: Duration,
    pause: Duration,
    time: Duration,
) -> Result<()> {
    let clock = SystemClock;
    let target = format!("/probe?module=http_2xx&target=http://{server}/health");
    let request = format!("GET {target} HTTP/1.1\r\nhost: {exporter}\r\n\r\n");
    let mut stream = BufReader::new(TcpStream::connect(exporter).await?);
    let mut next = clock.now() + delay;
    let end = next + time;
    while next < end {
        clock.sleep(next.since(clock.now())).await;
        next = next + pause;
        stream.write_all(request.as_bytes()).await?;
        let metrics = read_answer(&mut stream).await?;
        if !metrics.lines().any(|line| line == "probe_success 1") {
            return Err(format!("the exporter's probe failed:\n{metrics}").into());
        }
    }
    Ok(())
}

/// Reads an HTTP answer, by its length or its chunks.
async fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let (mut length, mut chunked) = (0, false);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err("the exporter closed the connection".into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        chunked |= line == "transfer-encoding: chunked";
    }
    let mut body = Vec::new();
    loop {
        if chunked {
            line.clear();
            stream.read_line(&mut line).await?;
            length = usize::from_str_radix(line.trim_end(), 16)?;
        }
        let begin = body.len();
        body.resize(begin + length, 0);
        stream.read_exact(&mut body[begin..]).await?;
        if chunked {
            line.clear();
            stream.read_line(&mut line).await?;
        }
        if !chunked || length == 0 {
            return Ok(String::from_utf8(body)?);
        }
    }
}

/// Answers every request with 200, on a thread of its own.
fn serve(answered: Arc<AtomicU64>) -> Result<SocketAddr> {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n";
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((mut stream, _)) = listener.accept().await {
                let answered = answered.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                        if request.ends_with(b"\r\n\r\n") {
                            request.clear();
                            answered.fetch_add(1, Ordering::Relaxed);
                            if stream.write_all(ANSWER).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    });
    Ok(address)
}
