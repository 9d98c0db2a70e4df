//! Many processes at once, processes killed at any point, a disk that is full, and what a thief finds in the store.

#![expect(
    clippy::disallowed_methods,
    reason = "the moment of the kill is what is tested, and a test ends at the first surprise"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use servicekit::Random;

use crate::harness::Store;

const IDS: usize = 10;

fn cert(store: &Store, args: &[&str]) -> Child {
    // What is tested is the store, not how fast a busy machine is.
    let mut command =
        store.command(["cert", "--label", "web", "--x509", "--store-timeout", "240s"]);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ask(store: &Store, args: &[&str]) -> Value {
    answer(store, args, cert(store, args))
}

/// What a command answers. On a machine that is far too busy it may not get hold of the file in time and says so; it is
/// asked again then, as it says, and must find what it or others have done.
fn answer(store: &Store, args: &[&str], mut child: Child) -> Value {
    for _ in 0..10 {
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).unwrap();
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && said.contains("kept it locked"), "{output:?}");
        child = cert(store, args);
    }
    panic!("no answer to {args:?}");
}

#[test]
fn fifty_processes_at_once_get_one_ca_and_one_certificate_for_each_id() {
    let store = Store::new();
    // Not even the file of the store, nor the identity, is there yet.
    let ids: Vec<String> = (0..50).map(|i| format!("web-{}", i % IDS)).collect();
    let all: Vec<Child> = ids.iter().map(|id| cert(&store, &["--service-id", id])).collect();
    let all = ids.iter().zip(all);
    let all: Vec<_> = all.map(|(id, child)| answer(&store, &["--service-id", id], child)).collect();
    let distinct =
        |key: &str| all.iter().map(|one| one[key].as_str().unwrap()).collect::<BTreeSet<_>>().len();
    assert_eq!((distinct("ca"), distinct("cert"), distinct("key")), (1, IDS, IDS));
    for (id, one) in ids.iter().zip(&all) {
        assert_eq!(one["service_id"], **id);
        assert_eq!(ask(&store, &["--service-id", id]), *one, "none is lost");
    }
    let left: Vec<_> = fs::read_dir(store.path("")).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')));
}

/// `SERVICEKIT_SEEDS` asks for more rounds than the few that always run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SERVICEKIT_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    0..asked.unwrap_or(few)
}

/// Kills a command at some point of the time that such a command takes.
fn kill(mut child: Child, random: &Random, takes: Duration) {
    let micros = u64::try_from(takes.as_micros()).unwrap();
    std::thread::sleep(Duration::from_micros(random.below(micros * 5 / 4)));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// How long the first certificate of a store takes on this machine, as it is now.
fn duration_of_the_first() -> Duration {
    let store = Store::new();
    let began = std::time::Instant::now();
    ask(&store, &["--service-id", "web-1"]);
    began.elapsed()
}

#[test]
fn a_process_killed_at_any_point_leaves_nothing_or_a_whole_certificate() {
    let takes = duration_of_the_first();
    for seed in seeds(6) {
        eprintln!("seed {seed}");
        let (store, random) = (Store::new(), Random::seeded(seed));
        let (out, mut last) = (store.path("tls"), None::<Value>);
        let folder = out.to_str().unwrap();
        for round in 0..4 {
            let san = format!("n{}.example", round / 2);
            let args = ["--service-id", "web-1", "--san", &san, "--out", folder];
            kill(cert(&store, &args), &random, takes);
            let files = check(&out);
            // Who comes next cleans up, also where nothing comes of it.
            let mut fails = cert(&store, &[&args[..], &["--identity", "/none"]].concat());
            assert!(!fails.wait().unwrap().success(), "seed {seed}");
            let left = fs::read_dir(&out).unwrap().count();
            assert_eq!(left, if files.is_some() { 6 } else { 0 }, "seed {seed}");
            // What was there in the folder is in the store, or was replaced there.
            let now = ask(&store, &["--service-id", "web-1", "--san", &san]);
            if let Some(last) = &last {
                assert_eq!(now["ca"], last["ca"], "seed {seed}: one CA");
            }
            if let Some(files) = files {
                assert_eq!(files.ca, now["ca"].as_str().unwrap(), "seed {seed}");
            }
            let again = ask(&store, &["--service-id", "web-1", "--out", folder]);
            assert_eq!(again["serial"], now["serial"], "seed {seed}: none is lost");
            let files = check(&out).unwrap();
            assert_eq!(files.cert, now["cert"].as_str().unwrap(), "seed {seed}");
            last = Some(now);
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), 6, "seed {seed}: nothing else is left");
    }
}

struct Files {
    cert: String,
    ca: String,
}

/// Either there is no key, or a whole set that belongs together.
fn check(folder: &Path) -> Option<Files> {
    if fs::read(folder.join("key.pem")).is_err() {
        for name in ["cert.pem", "chain.pem", "ca.pem"] {
            assert!(fs::read(folder.join(name)).is_err(), "{name} without a key");
        }
        return None;
    }
    let openssl = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        output.stdout
    };
    openssl("verify -x509_strict -CAfile ca.pem chain.pem");
    let of_cert = openssl("x509 -in cert.pem -noout -pubkey");
    assert_eq!(openssl("pkey -in key.pem -pubout"), of_cert);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    Some(Files { cert: read("cert.pem"), ca: read("ca.pem") })
}

#[test]
fn a_disk_that_fills_half_way_leaves_the_old_files() {
    let script = r#"
        set -e
        folder=$1
        mkdir "$folder/disk"
        mount -t tmpfs -o size=64k servicekit-test "$folder/disk"
        cert() { "$0" cert --label web --x509 --service-id web-1 --out "$folder/disk/tls" "$@"; }
        cert > "$folder/first"
        mkdir "$folder/before"
        cp "$folder"/disk/tls/*.pem "$folder/before"
        # From a full disk to one that has room for one file more.
        dd if=/dev/zero of="$folder/disk/fill" bs=4k 2> /dev/null || true
        for free in 0 1 2 3; do
            size=$(stat -c %s "$folder/disk/fill")
            [ $free = 0 ] || truncate -s $((size - 4096)) "$folder/disk/fill"
            status=0
            cert --san "n$free.example" > "$folder/out" 2> "$folder/err" || status=$?
            [ $status = 125 ] && [ ! -s "$folder/out" ]
            grep -q 'No space left' "$folder/err"
            for file in key cert chain ca; do
                cmp "$folder/before/$file.pem" "$folder/disk/tls/$file.pem"
            done
            [ "$(ls -A "$folder/disk/tls" | wc -l)" = 6 ]
        done
        rm "$folder/disk/fill"
        cert > "$folder/last"
        ! cmp -s "$folder/before/key.pem" "$folder/disk/tls/key.pem"
    "#;
    let may =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "{may:?}");
        eprintln!(
            "SKIPPED: it needs `unshare -rm` and `mount`, as root or with user namespaces: {may:?}"
        );
        return;
    }
    let store = Store::new();
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_servicekit")]);
    command.arg(store.path("").canonicalize().unwrap());
    command.env("SERVICEKIT_BACKEND", store.url());
    let output = command.output().unwrap();
    let err = fs::read_to_string(store.path("err"));
    assert!(output.status.success(), "{output:?} {err:?}");
}

#[test]
fn nothing_in_the_store_shows_a_private_key() {
    let store = Store::new();
    // Held open, so that what was written is in the log too, and not only in the file.
    let _open = store.spawn("hosts --label web --watch");
    let leaf = ask(&store, &["--service-id", "web-1"]);
    ask(&store, &["--service-id", "web-1", "--san", "b.example"]);
    let last = ask(&store, &["--service-id", "web-1"]);
    let ca = opened(&store, "ca");
    let keys: Vec<Vec<u8>> = [&leaf["key"], &last["key"], &ca["content"]["key"]]
        .map(|key| der(key.as_str().unwrap()))
        .into();
    assert!(store.path("store.db-wal").exists());

    let files = ["store.db", "store.db-wal", "store.db-shm", "store.db-queue"];
    let read_all = || -> Vec<Vec<u8>> {
        files.iter().map(|name| fs::read(store.path(name)).unwrap_or_default()).collect()
    };
    let found = |keys: &[Vec<u8>]| -> Vec<String> {
        let files = read_all();
        let all = files.iter().flat_map(|file| keys.iter().flat_map(|key| scan(file, key)));
        all.collect()
    };
    assert_eq!(found(&keys), Vec::<String>::new());

    // The scan finds what it looks for: each notation, planted into the store itself.
    let key = &keys[0];
    for (name, planted) in notations(key) {
        let sql = format!("UPDATE records SET value = x'{}' WHERE name = 'mark:ca'", hex(&planted));
        let output = Command::new("sqlite3").arg(store.path("store.db")).arg(sql).output();
        assert!(output.as_ref().unwrap().status.success(), "{output:?}");
        let found = found(&keys[..1]);
        assert!(found.contains(&name), "{name} is not found: {found:?}");
    }
}

/// What is sealed in a record.
fn opened(store: &Store, name: &str) -> Value {
    let sql = format!("SELECT CAST(value AS TEXT) FROM records WHERE name = '{name}'");
    let script = r#"sqlite3 -readonly "$0" "$1" | age -d -i "$0.identity""#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(store.path("store.db")).arg(sql);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let document = output.stdout.split(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice(document).unwrap()
}

/// The PKCS#8 bytes of a key in PEM.
fn der(pem: &str) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(["base64", "-d", "-A"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.len() > 100, "{output:?}");
    output.stdout
}

/// What a key may look like. The secret itself, 32 bytes of the DER, is looked for wherever it may stand.
fn notations(der: &[u8]) -> Vec<(String, Vec<u8>)> {
    // PKCS#8 of P-256: the secret follows the 36 bytes that are the same for all.
    let secret = &der[36..68];
    let mut all = vec![
        ("DER".to_owned(), der.to_vec()),
        ("the bare secret".to_owned(), secret.to_vec()),
        ("PEM".to_owned(), pem_lines(der).into_bytes()),
        ("hex".to_owned(), hex(secret).into_bytes()),
        ("HEX".to_owned(), hex(secret).to_uppercase().into_bytes()),
    ];
    // Base64 looks different after each number of bytes before it.
    for before in 0..3 {
        let padded = [&vec![0; before][..], secret].concat();
        let text = base64(&padded);
        let text = &text[if before == 0 { 0 } else { 4 }..text.len() - 4];
        all.push((format!("base64 after {before}"), text.as_bytes().to_vec()));
        let url = text.replace('+', "-").replace('/', "_");
        all.push((format!("base64url after {before}"), url.into_bytes()));
    }
    all
}

fn scan(file: &[u8], der: &[u8]) -> Vec<String> {
    let all = notations(der).into_iter();
    let mut found: Vec<_> =
        all.filter(|(_, needle)| has(file, needle)).map(|(name, _)| name).collect();
    for begin in ["PRIVATE KEY", "AGE-SECRET-KEY"] {
        if has(file, begin.as_bytes()) {
            found.push(begin.to_owned());
        }
    }
    found
}

fn has(file: &[u8], needle: &[u8]) -> bool {
    file.windows(needle.len()).any(|window| window[0] == needle[0] && window == needle)
}

/// The body of a PEM file as such files are written.
fn pem_lines(der: &[u8]) -> String {
    let text = base64(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    lines.join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}
