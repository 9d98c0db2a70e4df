//! What `servicekit hosts --format` prints is read by those it is for: shells, resolvers, HAProxy, nginx, Prometheus. They are
//! kept up to date by the scripts of examples/hooks.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use servicekit::{Instance, State};

use crate::harness::{Running, Signal, Store, Web, eventually, instance};

const SOON: Duration = Duration::from_secs(8);

// ---- Shells ----

#[test]
fn a_shell_evaluates_env() {
    let store = Store::new();
    let script = format!(
        "PATH='{}':$PATH; eval \"$(servicekit hosts --label my-db.1 --format env)\" || exit\n\
         echo \"$SERVICEKIT_MY_DB_1_COUNT $SERVICEKIT_MY_DB_1_HOSTS $SERVICEKIT_MY_DB_1_HOST,$SERVICEKIT_MY_DB_1_PORT\"",
        folder_of_the_command().display()
    );
    let shells = [&["sh", "-eu", "-c"][..], &["bash", "-eu", "-c"], &["zsh", "-eu", "-c"]];
    let said = |shell: &[&str]| {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(&script).env("SERVICEKIT_BACKEND", store.url());
        succeed(&mut command)
    };
    for shell in shells {
        assert_eq!(said(shell), "0  ,\n", "{shell:?}");
    }
    store.register([("b", "::1"), ("a", "10.0.0.2")].map(|(id, host)| {
        let label = "my-db.1".parse().unwrap();
        Instance { label, ..instance(id, host, Some(80)) }
    }));
    for shell in shells {
        assert_eq!(said(shell), "2 10.0.0.2:80,[::1]:80 10.0.0.2,80\n", "{shell:?}");
    }
}

// ---- Resolvers ----

#[test]
fn resolvers_find_names_in_hosts() {
    let store = Store::new();
    store.register([
        instance("one", "10.9.0.2", Some(80)),
        instance("two", "10.9.0.10", None),
        instance("six", "fd00::6", Some(80)),
        instance("a@b", "10.9.0.3", None),
        instance("named", "db.example", Some(80)),
    ]);
    let file = store.path("hosts");
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();
    let hook = hook("update-hosts-file", "web", &file);
    let mut following = follow(&store, "hosts", &hook);
    following
        .says("web: 1 left out (the host is a name, and a hosts file takes only addresses): named");
    eventually("the hook", || fs::read_to_string(&file).is_ok_and(|text| text.contains("one.web")));

    let names = [
        ("web", "10.9.0.2 10.9.0.3 10.9.0.10 fd00::6"),
        ("one.web", "10.9.0.2"),
        ("six.web", "fd00::6"),
        ("named.web", ""),
    ];
    let dnsmasq = Dnsmasq::new(&file);
    for (name, addresses) in names {
        assert_eq!(dnsmasq.resolve(name), sorted(addresses), "{name}");
    }
    // The C library's resolver reads one file only, which takes a mount namespace to replace; some containers allow none.
    if unshare(&["true"]).output().unwrap().status.success() {
        let script = "mount --bind \"$0\" /etc/hosts && getent ahosts \"$1\" | awk '$2 == \"STREAM\" { print $1 }'";
        for (name, addresses) in names {
            let found =
                unshare(&["sh", "-c", script, file.to_str().unwrap(), name]).output().unwrap();
            assert_eq!(sorted(&text(&found)), sorted(addresses), "{name}: {found:?}");
        }
    }

    let other = fs::read_to_string(&file).unwrap();
    assert!(other.starts_with("127.0.0.1 localhost\n"), "what is not ours stays: {other}");
}

/// Each service has a hook of its own, and all of them write one file.
#[test]
fn many_hooks_share_a_hosts_file_and_a_broken_one_is_left_alone() {
    let store = Store::new();
    let file = store.path("hosts");
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();
    let run = |label: &str| {
        let script = format!("echo 10.0.0.1 {label} | {}", hook("update-hosts-file", label, &file));
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    let labels = ["a", "b", "c", "d"];
    std::thread::scope(|scope| {
        for label in labels {
            scope.spawn(move || (0..10).for_each(|_| assert!(run(label).status.success())));
        }
    });
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.starts_with("127.0.0.1 localhost\n"), "{written}");
    for label in labels {
        assert_eq!(written.matches(&format!("10.0.0.1 {label}\n")).count(), 1, "{written}");
    }
    let broken = format!("# web, by servicekit: begin\n{written}");
    fs::write(&file, &broken).unwrap();
    let refused = run("web");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has no end"), "{refused:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), broken);
}

fn unshare(command: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "--"]).args(command);
    unshare
}

fn sorted(addresses: &str) -> Vec<String> {
    let mut addresses: Vec<_> = addresses.split_whitespace().map(str::to_owned).collect();
    addresses.sort();
    addresses
}

struct Dnsmasq {
    _server: Server,
    port: u16,
}

impl Dnsmasq {
    fn new(hosts: &Path) -> Self {
        loop {
            let free = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut command = Command::new("/usr/sbin/dnsmasq");
            command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
            ]);
            command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file="]);
            command.arg(format!("--user={}", succeed(Command::new("id").arg("-un")).trim()));
            command.arg(format!("--port={port}")).arg(format!("--addn-hosts={}", hosts.display()));
            let mut server = Server::start(command, hosts.with_extension("log"));
            // Somebody may have taken the port meanwhile; then it ends.
            let mut answers = false;
            eventually("dnsmasq", || {
                answers = dig(port, &["localhost", "A"]).is_some();
                answers || server.0.try_wait().unwrap().is_some()
            });
            if answers {
                return Self { _server: server, port };
            }
        }
    }

    fn resolve(&self, name: &str) -> Vec<String> {
        let found = dig(self.port, &[name, "A", name, "AAAA"]).unwrap();
        sorted(&found)
    }
}

/// `None` where nobody answers.
fn dig(port: u16, questions: &[&str]) -> Option<String> {
    let mut dig = Command::new("dig");
    dig.args(["@127.0.0.1", "-p", &port.to_string(), "+short", "+tries=1", "+time=5"]);
    let output = dig.args(questions).output().unwrap();
    output.status.success().then(|| text(&output))
}

// ---- Load balancers ----

/// What may not get into the configuration of anybody, and what only just may.
fn odd_instances() -> Vec<Instance> {
    let weighted = |id, port, weight| Instance { weight, ..instance(id, "127.0.0.1", Some(port)) };
    vec![
        instance("directive", "127.0.0.1:1; } server { listen 8080", Some(80)),
        instance("line", "127.0.0.1\nfrontend x", Some(80)),
        instance("variable", "${HOME}", Some(80)),
        instance("dots", "a..b", Some(80)),
        instance("dot", ".", Some(80)),
        instance("hyphen", "a-", Some(80)),
        instance("number", "999.999.999.999", Some(80)),
        instance("unix", "unix", Some(80)),
        instance("portless", "127.0.0.1", None),
        instance("a@b", "127.0.0.1", Some(1)),
        instance("a_b", "127.0.0.1", Some(2)),
        instance("six:6", "::1", Some(80)),
        instance("name", "localhost", Some(80)),
        Instance { state: State::Draining, ..instance("draining", "127.0.0.1", Some(3)) },
        // The next one is at the address of one that leaves.
        Instance { state: State::Draining, ..instance("leaving", "127.0.0.1", Some(6)) },
        weighted("nothing", 4, 0),
        weighted("little", 5, 1),
        weighted("much", 6, 1_000_000),
    ]
}

#[test]
fn haproxy_takes_what_it_is_given_and_forwards_to_who_is_up() {
    let store = Store::new();
    let main = store.path("main.cfg");
    let file = store.path("web.cfg");
    let socket = store.path("socket");
    let config = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n  option redispatch\n\
         frontend in\n  bind unix@{}\n  default_backend web\n",
        socket.display()
    );
    fs::write(&main, config).unwrap();
    let haproxy = |more: &[&str]| {
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-f").arg(&main).arg("-f").arg(&file).args(more);
        command
    };
    fs::write(&file, "backend web\n").unwrap();
    let server = Server::start(haproxy(&["-W"]), store.path("log"));
    eventually("HAProxy without servers", || status(&socket) == "503");

    // HAProxy may miss a signal while it starts or reloads. Whatever reload begins from now on reads what is there now.
    let reload = format!(
        "#!/bin/sh\nbegun() {{ grep -c 'Reloading HAProxy' {0}; }}\nbefore=$(begun)\n\
         until [ \"$(begun)\" -gt \"$before\" ]; do kill -USR2 {1}; sleep 0.2; done\n",
        store.path("log").display(),
        server.0.id()
    );
    let script = store.path("reload");
    fs::write(&script, reload).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let reload = format!(
        "PATH=$PATH:/usr/sbin HAPROXY_CFG={} HAPROXY_RELOAD={} {}",
        main.display(),
        script.display(),
        hook("reload-haproxy", &file, "").trim_end()
    );
    stays_up_to_date(&store, "haproxy", &reload, &|| status(&socket));

    store.register(odd_instances());
    let done = store.run("hosts --label web --format haproxy");
    assert!(
        done.stdout.contains("server draining 127.0.0.1:3 check weight 0\n"),
        "{}",
        done.stdout
    );
    assert_eq!(done.stdout.lines().count(), 1 + 9, "{}", done.stdout);
    fs::write(&file, done.stdout).unwrap();
    succeed(&mut haproxy(&["-c", "-q"]));
}

#[test]
fn nginx_takes_what_it_is_given_and_forwards_to_who_is_up() {
    let store = Store::new();
    let main = store.path("main.conf");
    let file = store.path("web.conf");
    let socket = store.path("socket");
    let folder = store.path("");
    let config = format!(
        "daemon off; pid {0}/pid; error_log stderr; events {{ worker_connections 64; }}\n\
         http {{ access_log off; include {0}/web.conf; client_body_temp_path {0}/b; proxy_temp_path {0}/p;\n\
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen unix:{0}/socket; location / {{ proxy_pass http://web; }} }} }}\n",
        folder.display()
    );
    fs::write(&main, config).unwrap();
    // Its workers are nobody where root starts it, and have to reach the socket.
    let nginx = |more: &[&str]| {
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&folder).arg("-c").arg(&main).arg("-e").arg("stderr").args(more);
        command
    };
    fs::write(&file, store.run("hosts --label web --format nginx").stdout).unwrap();
    let _server = Server::start(nginx(&[]), store.path("log"));
    eventually("nginx without servers", || status(&socket) == "502");

    let reload = format!(
        "NGINX='/usr/sbin/nginx -p {} -c {} -e stderr' {}",
        folder.display(),
        main.display(),
        hook("reload-nginx", &file, "").trim_end()
    );
    stays_up_to_date(&store, "nginx", &reload, &|| status(&socket));

    store.register(odd_instances());
    let done = store.run("hosts --label web --format nginx");
    assert!(done.stderr.contains("web: 1 left out (nginx would take the host for a socket): unix"));
    fs::write(&file, done.stdout).unwrap();
    succeed(&mut nginx(&["-t", "-q"]));
}

/// Whatever ends the hook of nginx before nginx has said yes, no file that it has not taken stays.
#[test]
fn a_reload_of_nginx_that_is_killed_leaves_nothing_unchecked() {
    let store = Store::new();
    let file = store.path("web.conf");
    let reload = |nginx: &str| {
        let script = store.path("nginx");
        fs::write(&script, nginx).unwrap();
        let line = format!("echo new | {}", hook("reload-nginx", &file, ""));
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("NGINX", format!("sh {}", script.display()));
        let output = command.output().unwrap();
        (output.status.success(), fs::read_to_string(&file).unwrap())
    };
    fs::write(&file, "old\n").unwrap();
    assert_eq!(reload("exit 1"), (false, "old\n".to_owned()));
    assert_eq!(reload("kill -TERM $PPID"), (false, "old\n".to_owned()));
    // Nobody can do anything then, but the next run.
    assert_eq!(reload("kill -KILL $PPID"), (false, "new\n".to_owned()));
    assert_eq!(reload("exit 1"), (false, "old\n".to_owned()));
    assert_eq!(reload("exit 0"), (true, "new\n".to_owned()));
    for name in ["web.conf.old", "web.conf.new", "web.conf.copy"] {
        assert!(!store.path(name).exists(), "{name}");
    }
    // There was none before.
    fs::remove_file(&file).unwrap();
    assert_eq!(reload("exit 1"), (false, String::new()));
}

/// A load balancer follows who is up, through a hook that reloads it, and refuses what is no configuration.
fn stays_up_to_date(store: &Store, format: &str, hook: &str, status: &dyn Fn() -> String) {
    let (good, gone) = (Web::new(200), Web::new(204));
    let following = follow(store, format, hook);
    let watch = |id: &str, web: &Web| store.watch_at(id, web, &format!("127.0.0.1:{}", web.port()));
    let first = watch("first", &gone);
    eventually("the first", || status() == "204");
    let second = watch("second", &good);
    first.end(Signal::TERM, SOON);
    eventually("the second alone", || (0..4).all(|_| status() == "200"));
    let done = following.end(Signal::TERM, SOON);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(!done.stderr.contains("--exec ended"), "{}", done.stderr);

    let refused = format!("{{ cat; echo '!'; }} | {hook}");
    let mut following = follow(store, format, &refused);
    following.says("--exec ended with exit status: 1");
    assert_eq!(status(), "200", "what is wrong replaces nothing");
    drop(following);
    second.end(Signal::TERM, SOON);
}

/// What a web server at a socket answers.
fn status(socket: &Path) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--max-time",
        "10",
    ]);
    text(&curl.arg("--unix-socket").arg(socket).arg("http://web/").output().unwrap())
}

// ---- Prometheus ----

#[test]
fn prometheus_discovers_through_a_file_and_through_http() {
    let store = Store::new();
    let web = Web::new(200);
    let address = format!("127.0.0.1:{}", web.port());
    let first = store.watch_at("first", &web, &address);
    let file = store.path("web.json");
    let _following = follow(&store, "prometheus", &hook("replace-file", &file, ""));
    eventually("the hook", || fs::read_to_string(&file).is_ok_and(|text| text.contains(&address)));

    let discovery = Web::serving(store.json_text("hosts --label web --format prometheus"));
    let config = format!(
        "global: {{ scrape_interval: 1h }}\nscrape_configs:\n\
         - job_name: file\n  file_sd_configs: [{{ files: ['{}'], refresh_interval: 1s }}]\n  relabel_configs: &relabel\n  \
         - {{ source_labels: [__meta_servicekit_service_id], target_label: service_id }}\n  \
         - {{ source_labels: [__meta_servicekit_info_version], target_label: version }}\n\
         - job_name: http\n  http_sd_configs: [{{ url: '{}', refresh_interval: 1s }}]\n  relabel_configs: *relabel\n",
        file.display(),
        discovery.url()
    );
    let config_file = store.path("prometheus.yml");
    fs::write(&config_file, config).unwrap();
    let log = store.path("prometheus.log");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config_file.display()));
    command.arg(format!("--storage.tsdb.path={}", store.path("tsdb").display()));
    command.arg("--web.listen-address=127.0.0.1:0");
    let _server = Server::start(command, log.clone());
    let mut listens = None;
    eventually("Prometheus", || {
        let log = fs::read_to_string(&log).unwrap();
        let line = log.lines().find(|line| line.contains("\"Listening on\"")).unwrap_or_default();
        listens = line.split_once("address=").map(|(_, address)| address.to_owned());
        listens.is_some()
    });
    let targets = || {
        let url = format!("http://{}/api/v1/targets?state=active", listens.as_deref().unwrap());
        let answer = succeed(Command::new("curl").args(["--silent", "--max-time", "10", &url]));
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let mut targets: Vec<String> = answer["data"]["activeTargets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|target| {
                let label = |name: &str| target["labels"][name].as_str().unwrap_or("-").to_owned();
                ["job", "instance", "service_id", "version"].map(label).join(" ")
            })
            .collect();
        targets.sort();
        targets
    };
    let through = |job: &str, id: &str| format!("{job} {address} {id} 7");
    eventually("both", || targets() == [through("file", "first"), through("http", "first")]);

    first.end(Signal::TERM, SOON);
    let _second = store.watch_at("second", &web, &address);
    eventually("the change", || targets() == [through("file", "second"), through("http", "first")]);
}

// ---- What they share ----

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let log = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked, for it may have workers that it has to end.
        let asked = rustix::process::Pid::from_raw(self.0.id().cast_signed())
            .map(|pid| rustix::process::kill_process(pid, Signal::TERM));
        if asked.is_none_or(|asked| asked.is_err()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

fn follow(store: &Store, format: &str, hook: &str) -> Running {
    store.spawn_args(["hosts", "--label", "web", "--format", format, "--exec", hook])
}

/// The command line of one of the examples' hooks.
fn hook(name: &str, first: impl AsRef<Path>, second: impl AsRef<Path>) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hooks");
    format!(
        "{} {} {}",
        folder.join(name).display(),
        first.as_ref().display(),
        second.as_ref().display()
    )
}

fn folder_of_the_command() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_servicekit")).parent().unwrap().to_owned()
}

fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    text(&output)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
