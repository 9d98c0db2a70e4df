//! A snapshot that is restored into a new cluster: time goes back, and tokens do not.

use std::{fs, path::Path, process::Command, time::Duration};

use servicekit_core::{
    Backend, Env, Kind, Label, Namespace,
    lease::{Request, Standing, Term, Ticket, Token},
    store::Limits,
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::server;

fn connect(server: &server::Etcd) -> Backend {
    let config = Config::parse(&format!("//{}", server.endpoints()), false).unwrap();
    let etcd = Etcd::new(config, Env::system(), Limits::default()).unwrap();
    servicekit_etcd::backend(etcd, Namespace::default(), Env::system(), Limits::default())
}

fn etcdctl(server: &server::Etcd, args: &[&str], path: &Path) {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(server.endpoints()).args(args).arg(path);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn granted(backend: &Backend, holder: &str) -> (Ticket, Token) {
    let lease: Label = "x".parse().unwrap();
    let request = Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_secs(4) },
        slots: 1,
        wait: Some(Duration::from_secs(60)),
        note: String::new(),
    };
    let (ticket, standing) = backend.leases.join(&lease, &request).await.unwrap();
    match standing {
        Standing::Granted(granted) => (ticket, granted.token),
        _ => {
            use futures_util::StreamExt as _;
            let mut standings = backend.leases.wait(&ticket);
            loop {
                if let Ok(Standing::Granted(granted)) = standings.next().await.unwrap() {
                    return (ticket, granted.token);
                }
            }
        }
    }
}

#[tokio::test]
async fn tokens_rise_after_a_snapshot_was_restored() {
    let Some(mut server) = server::Etcd::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    let before = connect(&server);
    let (ticket, first) = granted(&before, "one").await;
    etcdctl(&server, &["snapshot", "save"], &snapshot);
    before.leases.leave(&ticket).await.unwrap();
    let (ticket, second) = granted(&before, "two").await;
    assert!(second > first);

    let member = &mut server.members()[0];
    let data = member.data();
    member.kill();
    fs::remove_dir_all(&data).unwrap();
    let restore = ["snapshot", "restore", "--data-dir", data.to_str().unwrap()];
    etcdctl(&server, &restore, &snapshot);
    server.members()[0].start();

    // The grant that the snapshot does not know is gone, and its holder is told.
    let lost = loop {
        match before.leases.renew(&ticket).await {
            Err(error) if error.is_transient() => {}
            answer => break answer.unwrap_err(),
        }
    };
    assert_eq!(lost.kind(), Kind::Lost, "{lost:?}");
    // The one that it knows ends by its ttl, since nobody renews it.
    let (_, third) = granted(&connect(&server), "three").await;
    assert!(third > second, "{third:?} after {second:?}");
}
