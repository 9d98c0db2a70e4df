//! What `cert` writes does in the hands of others: OpenSSL, nginx and curl, the JVM, and age.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{self, Store, eventually};

/// A certificate in a folder, in front of which the tools are run.
struct Issued {
    store: Store,
    folder: PathBuf,
}

impl Issued {
    fn new() -> Self {
        let store = Store::new();
        let folder = store.path("web");
        let sans = "--san web.example.com --san *.web.example.com --san 127.0.0.1 --san ::1";
        store.json(&format!(
            "cert --label web --x509 --service-id web-1 {sans} --out {}",
            folder.display()
        ));
        Self { store, folder }
    }

    /// Runs a command line, split at spaces, in the folder.
    fn run(&self, line: &str) -> Output {
        run(&self.folder, line)
    }

    fn succeeds(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }
}

fn run(folder: &Path, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).current_dir(folder).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("{line}: {error}; `make setup` installs it"))
}

#[test]
fn openssl_accepts_it_for_what_it_is_and_for_nothing_else() {
    let issued = Issued::new();
    let verify = "openssl verify -x509_strict -CAfile ca.pem";
    for rest in [
        "cert.pem",
        "chain.pem",
        "-purpose sslserver cert.pem",
        "-purpose sslclient cert.pem",
        "-verify_hostname web.example.com cert.pem",
        "-verify_hostname a.web.example.com cert.pem",
        "-verify_ip 127.0.0.1 cert.pem",
        "-verify_ip ::1 cert.pem",
        "ca.pem",
    ] {
        issued.succeeds(&format!("{verify} {rest}"));
    }
    for rest in [
        "-verify_hostname web-1 cert.pem",
        "-verify_hostname other.example.com cert.pem",
        "-verify_ip 127.0.0.2 cert.pem",
        "-purpose smimesign cert.pem",
        "-purpose crlsign cert.pem",
    ] {
        assert!(!issued.run(&format!("{verify} {rest}")).status.success(), "{rest}");
    }
    issued.succeeds("openssl pkey -in key.pem -check -noout");
    let of_key = issued.succeeds("openssl pkey -in key.pem -pubout");
    let of_cert = issued.succeeds("openssl x509 -in cert.pem -noout -pubkey");
    assert_eq!(of_key, of_cert);

    // A CA of another namespace is another one.
    let other = issued.store.path("other");
    let line = format!(
        "cert --namespace other --label web --x509 --service-id a --out {}",
        other.display()
    );
    issued.store.json(&line);
    let foreign = format!("openssl verify -CAfile {}/ca.pem cert.pem", other.display());
    assert!(!issued.run(&foreign).status.success());

    let serial = issued.succeeds("openssl x509 -in cert.pem -noout -serial");
    let json = issued.store.json("cert --label web --x509 --service-id web-1");
    assert_eq!(serial.trim(), format!("serial={}", json["serial"].as_str().unwrap()));
}

#[test]
fn the_jvm_accepts_chain_names_and_usages() {
    let issued = Issued::new();
    let shown = issued.succeeds("keytool -printcert -file cert.pem");
    for part in [
        "Owner: CN=web-1, O=web",
        "DNSName: web.example.com",
        "DNSName: *.web.example.com",
        "IPAddress: 127.0.0.1",
        "IPAddress: 0:0:0:0:0:0:0:1",
        "serverAuth",
        "clientAuth",
        "DigitalSignature",
        "AuthorityKeyIdentifier",
        "SubjectKeyIdentifier",
    ] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    // A key store with the key; the JVM takes the chain for it only if that leads to what it trusts.
    issued.succeeds("openssl req -x509 -key key.pem -subj /CN=none -days 1 -out none.pem");
    issued.succeeds(
        "openssl pkcs12 -export -in none.pem -inkey key.pem -name web -out web.p12 -passout pass:changeit",
    );
    let keytool = "keytool -keystore web.p12 -storepass changeit";
    let reply = format!("{keytool} -importcert -alias web -file chain.pem");
    assert!(!issued.run(&reply).status.success(), "nothing is trusted yet");
    issued.succeeds(&format!("{keytool} -importcert -noprompt -alias ca -file ca.pem"));
    issued.succeeds(&reply);
    let listed = issued.succeeds(&format!("{keytool} -list -v -alias web"));
    assert!(listed.contains("Certificate chain length: 2"), "{listed}");
}

/// A server that wants a client certificate, on a port of its own.
struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    /// Another process may take a free port before nginx does.
    fn start(tls: &Path, prefix: &Path) -> Self {
        (0..5).find_map(|_| Self::try_start(tls, prefix)).unwrap()
    }

    fn try_start(tls: &Path, prefix: &Path) -> Option<Self> {
        fs::create_dir_all(prefix).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tls = tls.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|kind| format!("{kind}_temp_path {kind};")).concat();
        let config = format!(
            "daemon off; pid nginx.pid; error_log stderr; events {{}}
            http {{
                access_log off; {temporary}
                server {{
                    listen 127.0.0.1:{port} ssl;
                    ssl_certificate {tls}/chain.pem; ssl_certificate_key {tls}/key.pem;
                    ssl_client_certificate {tls}/ca.pem; ssl_verify_client on;
                    location / {{ return 200 '$ssl_client_verify $ssl_client_s_dn'; }}
                }}
            }}"
        );
        fs::write(prefix.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(prefix).args(["-c", "nginx.conf"]);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let mut nginx = Self { child, port };
        let mut has_ended = false;
        eventually("nginx listens, or has ended", || {
            has_ended = nginx.child.try_wait().unwrap().is_some();
            has_ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        (!has_ended).then_some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It ends its workers itself when it is asked to, and not when it is killed.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, harness::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn nginx_and_curl_shake_hands_with_client_certificates() {
    let issued = Issued::new();
    let client = issued.store.path("client");
    issued
        .store
        .json(&format!("cert --label curl --x509 --service-id curl-1 --out {}", client.display()));
    let nginx = Nginx::start(&issued.folder, &issued.store.path("nginx"));
    let port = nginx.port;
    let trust =
        format!("curl -sS --max-time 30 --noproxy * --resolve web.example.com:{port}:127.0.0.1");
    let curl = format!("{trust} --cacert ca.pem");
    let known = format!("{curl} --cert chain.pem --key key.pem");
    for host in ["web.example.com", "127.0.0.1"] {
        let output = run(&client, &format!("{known} https://{host}:{port}/"));
        let answer = String::from_utf8(output.stdout).unwrap();
        assert_eq!(answer, "SUCCESS CN=curl-1,O=curl", "{:?}", String::from_utf8(output.stderr));
    }
    // Without a certificate, under a name that it is not for, and without trust, there is no talk.
    let url = format!("https://web.example.com:{port}/");
    let refused = run(&client, &format!("{curl} -f {url}"));
    assert!(!refused.status.success());
    let renamed =
        format!("{known} --resolve x.example.com:{port}:127.0.0.1 https://x.example.com:{port}/");
    assert_eq!(run(&client, &renamed).status.code(), Some(60));
    let stranger = format!("{trust} --cert chain.pem --key key.pem {url}");
    assert_eq!(run(&client, &stranger).status.code(), Some(60));
}

/// The drill of `docs/certificates.md`: everything out of the store without servicekit.
#[test]
fn age_opens_what_is_stored() {
    let issued = Issued::new();
    let json = issued.store.json("cert --label web --x509 --service-id web-1");
    let database = issued.store.path("store.db");
    let identity = issued.store.path("store.db.identity");
    let drill = format!(
        "sqlite3 -readonly {} \"SELECT CAST(value AS TEXT) FROM records WHERE grp = 'default/certs' AND name = '$0'\" \
         | age -d -i {}",
        database.display(),
        identity.display()
    );
    let open = |name: &str| {
        let output = Command::new("sh").args(["-c", &drill, name]).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (document, mac) = text.trim_end().split_once('\n').unwrap();
        assert!(mac.starts_with("{\"mac\":\""), "{mac}");
        serde_json::from_str::<Value>(document).unwrap()
    };
    let leaf = open("leaf:web:web-1");
    assert_eq!(leaf["v"], 1);
    assert_eq!(leaf["namespace"], "default");
    assert_eq!(leaf["name"], "leaf:web:web-1");
    assert_eq!(leaf["revision"], 1);
    assert_eq!(leaf["content"]["key"], json["key"]);
    assert_eq!(leaf["content"]["cert"], json["cert"]);
    let ca = open("ca");
    assert_eq!(ca["content"]["cert"], json["ca"]);
    assert!(ca["content"]["key"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(open("mark:ca")["revision"], 1);
    // And nobody else opens it.
    let other = issued.store.path("other");
    issued.store.run(&format!("identity new --out {}", other.display()));
    let drill = drill.replace("store.db.identity", "other");
    let output = Command::new("sh").args(["-c", &drill, "ca"]).output().unwrap();
    assert!(!output.status.success());
}
