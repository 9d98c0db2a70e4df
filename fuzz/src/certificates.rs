use std::sync::LazyLock;

use servicekit::{
    Name, Result,
    pki::{Authority, Certificate, Identity, Request, seal},
    store::{Group, Profile, Store as _},
};

use crate::{World, run};

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::generate().expect("an identity"));

/// The records in the order of the lines, which begin with how they are stored: `g` as they have to be, `d` that damaged
/// where the next two bytes say, `r` what follows, `s` what follows sealed.
const RECORDS: [&str; 4] = ["ca", "leaf:web:web-1", "mark:ca", "mark:leaf:web:web-1"];

/// The records of a certificate that was really issued.
static GENUINE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let (world, mut records) = (World::new(Profile::Server), Vec::new());
    run(async {
        world.certificate().await.expect("a certificate");
        for name in RECORDS {
            let key = world.certs().key(name.parse::<Name>().expect("a name"));
            let record = world.store.get(&key).await.expect("it answers").expect("it is there");
            records.push(record.value.to_vec());
        }
    });
    records
});

/// Records of certificates that are anything: each is used or refused, and never replaced where it was refused.
pub fn certificates(bytes: &[u8]) {
    let genuine = &*GENUINE;
    let world = World::new(Profile::Server);
    run(async {
        let lines = bytes.split(|byte| *byte == b'\n');
        for ((name, genuine), line) in RECORDS.iter().zip(genuine).zip(lines) {
            if let Some(stored) = stored(line, genuine) {
                world.write(&world.certs(), name, &stored, None).await;
            }
        }
        let before = world.store.list(&[world.certs()]).await.expect("a list");
        let issued = world.certificate().await;
        let after = world.store.list(&[world.certs()]).await.expect("a list");
        match issued {
            Ok(certificate) => {
                assert!(!format!("{certificate:?}").contains("PRIVATE KEY"), "a key is shown");
            }
            Err(_) => assert!(before.iter().all(|record| after.contains(record))),
        }
    });
}

impl World {
    fn certs(&self) -> Group {
        Group::of(&self.namespace, "certs")
    }

    async fn certificate(&self) -> Result<Certificate> {
        let (certs, namespace, env) =
            (self.backend().certs, self.namespace.clone(), self.env.clone());
        let authority = Authority::new(certs, namespace, IDENTITY.clone(), env);
        authority.certificate(&Request::new("web".parse()?, "web-1".parse()?)).await
    }
}

fn stored(line: &[u8], genuine: &[u8]) -> Option<Vec<u8>> {
    match line {
        [b'g', ..] => Some(genuine.to_vec()),
        [b'd', high, low, bits, ..] => {
            let mut damaged = genuine.to_vec();
            let at = usize::from(u16::from_be_bytes([*high, *low])) % damaged.len();
            damaged[at] ^= bits;
            Some(damaged)
        }
        [b'r', rest @ ..] => Some(rest.to_vec()),
        [b's', document @ ..] => Some(seal::seal(&IDENTITY, document).ok()?.into_bytes()),
        _ => None,
    }
}
