//! The store's contract, by hand and with a clock that the test moves.

#[cfg(test)]
use std::time::Duration;

use futures_util::{StreamExt as _, future::poll_immediate};
use servicekit_core::{
    Env, Kind, Name, Namespace, Retry,
    clock::{SystemClock, timeout},
    store::{Change, Expect, Group, Keep, Life, Put, Record, Store as _, WriteId},
};
use servicekit_local::Local;

use crate::common::{Manual, count, ephemeral, group, host, key, place, put};

const SECOND: Duration = Duration::from_secs(1);
const NANO: Duration = Duration::from_nanos(1);

#[tokio::test]
async fn a_put_needs_its_condition() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let first = put(&key("a"), "one");
    let version = local.put(&first).await.unwrap();
    let error = local.put(&put(&key("a"), "two")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Conflict, Retry::Never));
    assert_eq!(error.to_string(), "local: put default/test/group/a: the record is not as expected");
    let at = |version| Put { expect: Expect::At(version), ..put(&key("a"), "three") };
    let next = local.put(&at(version.clone())).await.unwrap();
    assert_eq!(local.put(&at(version.clone())).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(
        local.put(&Put { key: key("b"), ..at(next.clone()) }).await.unwrap_err().kind(),
        Kind::Conflict
    );
    let record = local.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(
        (&*record.value, &record.version, record.life),
        (&b"three"[..], &next, Life::Durable)
    );
    assert_ne!(record.write, first.write);

    assert_eq!(local.delete(&key("a"), &version).await.unwrap_err().kind(), Kind::Conflict);
    local.delete(&key("a"), &next).await.unwrap();
    assert_eq!(local.delete(&key("a"), &next).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(local.get(&key("a")).await.unwrap(), None);
    let again = local.put(&put(&key("a"), "four")).await.unwrap();
    assert!(again != version && again != next, "a version never comes back");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let large = "x".repeat(local.capabilities().max_value_bytes);
    local.put(&put(&key("large"), &large)).await.unwrap();
    let error = local.put(&put(&key("larger"), &format!("{large}x"))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let unchanged = Put { keep: Keep::Unchanged, ..put(&key("a"), "") };
    assert_eq!(local.put(&unchanged).await.unwrap_err().kind(), Kind::Invalid);
    let durable = put(&key("durable"), "");
    local.put(&durable).await.unwrap();
    let error = local.touch(&durable.key, &durable.write).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_list_is_in_order_and_of_these_groups_alone() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    for (scope, name) in [("foo2", "x"), ("foo", "b"), ("foo", "a"), ("fo", "x"), ("zoo", "c")] {
        local
            .put(&put(&group(scope).key(name.parse::<servicekit_core::Name>().unwrap()), ""))
            .await
            .unwrap();
    }
    let names = |records: Vec<Record>| {
        records.iter().map(|record| record.key.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        names(local.list(&[group("foo")]).await.unwrap()),
        "default/test/foo/a default/test/foo/b"
    );
    let both = [group("zoo"), group("foo"), group("zoo")];
    assert_eq!(
        names(local.list(&both).await.unwrap()),
        "default/test/foo/a default/test/foo/b default/test/zoo/c"
    );
    assert_eq!(local.list(&[]).await.unwrap(), []);
    assert_eq!(local.list(&[group("none")]).await.unwrap(), []);
}

#[tokio::test]
async fn an_ephemeral_record_ends_at_its_nanosecond_everywhere_at_once() {
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let one = Local::open(&path, env.clone()).await.unwrap();
    let two = Local::open(&path, env).await.unwrap();
    let first = ephemeral(&key("a"), SECOND);
    let version = one.put(&first).await.unwrap();
    clock.advance(SECOND - NANO);
    let record = two.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.life, Life::Ephemeral { ttl: SECOND, left: Some(NANO) });
    assert_eq!(one.put(&put(&key("a"), "")).await.unwrap_err().kind(), Kind::Conflict);

    one.touch(&key("a"), &first.write).await.unwrap();
    let other = WriteId::new("other");
    assert_eq!(two.touch(&key("a"), &other).await.unwrap_err().kind(), Kind::Conflict);
    clock.advance(SECOND - NANO);
    assert_eq!(two.list(&[group("group")]).await.unwrap()[0].write, first.write);

    clock.advance(NANO);
    assert_eq!(two.get(&key("a")).await.unwrap(), None);
    assert_eq!(two.list(&[group("group")]).await.unwrap(), []);
    assert_eq!(one.touch(&key("a"), &first.write).await.unwrap_err().kind(), Kind::Lost);
    assert_eq!(two.delete(&key("a"), &version).await.unwrap_err().kind(), Kind::NotFound);
    let at = Put { expect: Expect::At(version.clone()), ..put(&key("a"), "") };
    assert_eq!(two.put(&at).await.unwrap_err().kind(), Kind::Conflict);
    assert_ne!(two.put(&put(&key("a"), "")).await.unwrap(), version);
}

#[tokio::test]
async fn a_put_can_leave_the_life_as_it_is() {
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let local = Local::open(&path, env).await.unwrap();
    let version = local.put(&ephemeral(&key("a"), SECOND)).await.unwrap();
    clock.advance(SECOND / 2);
    let next = Put { expect: Expect::At(version), keep: Keep::Unchanged, ..put(&key("a"), "new") };
    let version = local.put(&next).await.unwrap();
    let record = local.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.life, Life::Ephemeral { ttl: SECOND, left: Some(SECOND / 2) });
    let next = Put { expect: Expect::At(version), ..put(&key("a"), "kept") };
    local.put(&next).await.unwrap();
    clock.advance(SECOND);
    assert_eq!(local.get(&key("a")).await.unwrap().unwrap().life, Life::Durable);
}

#[tokio::test]
async fn what_has_ended_is_cleared_away_by_writers_and_never_by_readers() {
    const ROWS: &str = "SELECT count(*) FROM records";
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let local = Local::open(&path, env).await.unwrap();
    for i in 0..40 {
        local.put(&ephemeral(&key(&format!("e{i}")), SECOND)).await.unwrap();
    }
    clock.advance(SECOND);
    assert_eq!(local.list(&[group("group")]).await.unwrap(), []);
    assert_eq!(count(&path, ROWS), 40);
    for i in 0..12 {
        local.put(&put(&group("other").key(key(&format!("d{i}")).name), "")).await.unwrap();
    }
    assert_eq!(count(&path, ROWS), 12);
}

#[tokio::test]
async fn a_reboot_ends_what_is_ephemeral_and_nothing_else() {
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let before = Local::open_on(host("m", "boot 1"), &path, env.clone()).await.unwrap();
    let version = before.put(&put(&key("durable"), "stays")).await.unwrap();
    let session = ephemeral(&key("session"), SECOND * 1000);
    before.put(&session).await.unwrap();
    // The clock of the new boot begins anew; its numbers alone would say that the session lives.
    clock.advance(SECOND);
    let after = Local::open_on(host("m", "boot 2"), &path, env).await.unwrap();
    assert_eq!(after.get(&session.key).await.unwrap(), None);
    let listed = after.list(&[group("group")]).await.unwrap();
    assert_eq!(
        listed.iter().map(|record| record.key.name.as_str()).collect::<Vec<_>>(),
        ["durable"]
    );
    assert_eq!(after.touch(&session.key, &session.write).await.unwrap_err().kind(), Kind::Lost);
    let next = Put { expect: Expect::At(version), ..put(&key("durable"), "still") };
    after.put(&next).await.unwrap();
    assert_eq!(count(&path, "SELECT count(*) FROM records"), 1);
    after.put(&session).await.unwrap();

    let error = before.touch(&session.key, &session.write).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "two boots at once are two machines");
    assert!(after.get(&session.key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_of_another_machine_is_refused_unless_the_kernel_is_the_same() {
    let (_folder, path) = place();
    let open = |host| Local::open_on(host, &path, Env::system());
    drop(open(host("mine", "boot 1")).await.unwrap());
    let error = open(host("yours", "boot 2")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unsupported, Retry::Never));
    let message = error.to_string();
    assert!(message.contains("machine mine") && message.contains("this is yours"), "{message}");
    let nobody = servicekit_local::Host { machine: None, boot: "boot 2".into() };
    assert!(open(nobody).await.unwrap_err().to_string().contains("/etc/machine-id"));
    drop(open(host("container", "boot 1")).await.unwrap());
    drop(open(host("mine", "boot 3")).await.unwrap());
}

#[tokio::test]
async fn a_file_without_a_machine_is_given_to_the_first_that_writes_after_a_reboot() {
    let (_folder, path) = place();
    let nobody = |boot: &str| servicekit_local::Host { machine: None, boot: boot.into() };
    drop(Local::open_on(nobody("boot 1"), &path, Env::system()).await.unwrap());
    drop(Local::open_on(nobody("boot 2"), &path, Env::system()).await.unwrap());
    let mine = Local::open_on(host("mine", "boot 3"), &path, Env::system()).await.unwrap();
    mine.put(&put(&key("a"), "")).await.unwrap();
    let error = Local::open_on(host("yours", "boot 4"), &path, Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

/// Between the reading of the clock in a transaction and the moment that others see its commit, any time may go by.
#[tokio::test]
async fn what_others_saw_end_does_not_come_back_however_slow_the_disk_is() {
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let local = Local::open(&path, env).await.unwrap();
    let mut withdrawn = 0;
    for readings in 0..8 {
        for is_put in [false, true] {
            let first = ephemeral(&key(&format!("r{readings}-{is_put}")), SECOND);
            let version = local.put(&first).await.unwrap();
            clock.jump_after(readings, SECOND);
            let next =
                Put { expect: Expect::At(version), write: WriteId::new("next"), ..first.clone() };
            let result = match is_put {
                false => local.touch(&first.key, &first.write).await,
                true => local.put(&next).await,
            };
            let found = local.get(&first.key).await.unwrap();
            match result {
                // It jumped after the answer, or not at all yet.
                Ok(_) if found.is_none() => assert!(readings > 3),
                Ok(_) => assert!(found.is_some()),
                Err(error) => {
                    let expected = if is_put { Kind::Conflict } else { Kind::Lost };
                    assert_eq!(error.kind(), expected, "{error:?}");
                    assert_eq!(found, None, "{error:?}");
                    withdrawn += usize::from(error.message().contains("slow"));
                }
            }
            clock.advance(SECOND * 2);
            let _ = local.get(&first.key).await.unwrap();
        }
    }
    assert_eq!(withdrawn, 2, "once for a touch, and once for a put");
}

#[tokio::test]
async fn a_restored_backup_gives_no_version_again() {
    let (folder, path) = place();
    let backup = folder.path().join("backup.db");
    let local = Local::open(&path, Env::system()).await.unwrap();
    let mut version = local.put(&put(&key("a"), "0")).await.unwrap();
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    drop(conn);
    let mut seen = Vec::new();
    for i in 1..5 {
        let next = Put { expect: Expect::At(version), ..put(&key("a"), &i.to_string()) };
        version = local.put(&next).await.unwrap();
        seen.push(version.clone());
    }
    drop(local);
    SystemClock.pause().await;
    std::fs::rename(&backup, &path).unwrap();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let restored = local.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(&*restored.value, b"0");
    let next = Put { expect: Expect::At(restored.version), ..put(&key("a"), "new") };
    assert!(!seen.contains(&local.put(&next).await.unwrap()));
}

trait Pause {
    async fn pause(&self);
}

impl Pause for SystemClock {
    /// A file is not restored within the millisecond in which it was last written.
    async fn pause(&self) {
        servicekit_core::Clock::sleep(self, Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_follower_sees_puts_deletes_and_endings_of_its_group_alone() {
    let (_folder, path) = place();
    let (clock, env) = Manual::env();
    let local = Local::open(&path, env.clone()).await.unwrap();
    let other = Local::open(&path, env).await.unwrap();
    let durable = put(&key("durable"), "1");
    let version = local.put(&durable).await.unwrap();
    let mut changes = local.watch(&group("group"));
    let mut next = async || {
        let next = timeout(&SystemClock, SECOND * 30, changes.next()).await;
        next.expect("a change in time").expect("no end").expect("no error")
    };
    let Change::Snapshot(records) = next().await else { panic!("no snapshot first") };
    assert_eq!(records.len(), 1);

    // Not shown, or the answers below would be others.
    other.put(&put(&group("elsewhere").key(key("x").name), "")).await.unwrap();
    let short = ephemeral(&key("short"), SECOND);
    other.put(&short).await.unwrap();
    assert!(matches!(next().await, Change::Put(record) if record.key == short.key));
    clock.advance(SECOND / 2);
    other.touch(&short.key, &short.write).await.unwrap();
    local.delete(&durable.key, &version).await.unwrap();
    assert_eq!(next().await, Change::Removed(durable.key.name.clone()));
    clock.advance(SECOND);
    assert_eq!(next().await, Change::Removed(short.key.name.clone()));
}

#[tokio::test]
async fn a_follower_heals_when_its_file_comes_back() {
    let (folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    local.put(&put(&key("a"), "")).await.unwrap();
    let mut changes = local.watch(&group("group"));
    let mut next =
        async || timeout(&SystemClock, SECOND * 30, changes.next()).await.unwrap().unwrap();
    assert!(matches!(next().await, Ok(Change::Snapshot(_))));
    std::fs::rename(&path, folder.path().join("aside")).unwrap();
    let error = next().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    std::fs::rename(folder.path().join("aside"), &path).unwrap();
    while let Err(error) = next().await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    }
    local.put(&put(&key("b"), "")).await.unwrap();
    assert!(matches!(next().await, Ok(Change::Put(record)) if record.key == key("b")));
}

#[tokio::test]
async fn many_tasks_of_one_process_lose_no_update() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    local.put(&put(&key("n"), "0")).await.unwrap();
    let tasks = (0..8).map(|_| {
        let local = local.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                loop {
                    let found = local.get(&key("n")).await.unwrap().unwrap();
                    let n: u32 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
                    let next = Put {
                        expect: Expect::At(found.version),
                        ..put(&key("n"), &(n + 1).to_string())
                    };
                    match local.put(&next).await {
                        Ok(_) => break,
                        Err(error) => assert_eq!(error.kind(), Kind::Conflict),
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(&*local.get(&key("n")).await.unwrap().unwrap().value, b"80");
}

#[test]
fn who_watches_goes_on_when_the_runtime_that_polled_is_gone() {
    let (_folder, path) = place();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (one, two) = (runtime().unwrap(), runtime().unwrap());
    let local = one.block_on(Local::open(&path, Env::system())).unwrap();
    let mut first = local.watch(&group("group"));
    assert!(matches!(one.block_on(first.next()), Some(Ok(Change::Snapshot(_)))));
    let mut second = local.watch(&group("group"));
    assert!(matches!(two.block_on(second.next()), Some(Ok(Change::Snapshot(_)))));
    drop(first);
    drop(one);
    let other = two.block_on(Local::open(&path, Env::system())).unwrap();
    two.block_on(other.put(&put(&key("a"), ""))).unwrap();
    let next = two.block_on(async { timeout(&SystemClock, SECOND * 30, second.next()).await });
    assert!(matches!(next, Ok(Some(Ok(Change::Put(_))))), "{next:?}");
}

#[test]
fn who_watches_goes_on_when_the_runtime_was_gone_before_it_polled() {
    let (_folder, path) = place();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, two) = (runtime(), runtime());
    let local = two.block_on(Local::open(&path, Env::system())).unwrap();
    let mut first = local.watch(&group("group"));
    assert!(one.block_on(poll_immediate(first.next())).is_none(), "it has only begun");
    drop((first, one));
    let mut second = local.watch(&group("group"));
    assert!(matches!(two.block_on(second.next()), Some(Ok(Change::Snapshot(_)))));
    let other = two.block_on(Local::open(&path, Env::system())).unwrap();
    two.block_on(other.put(&put(&key("a"), ""))).unwrap();
    let next = two.block_on(async { timeout(&SystemClock, SECOND * 30, second.next()).await });
    assert!(matches!(next, Ok(Some(Ok(Change::Put(_))))), "{next:?}");
}

#[tokio::test]
async fn its_namespaces_are_those_that_have_a_record() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    assert!(local.namespaces().await.unwrap().is_empty());
    let names: Vec<_> = ["b", "a", "a.b"].map(|name| name.parse::<Namespace>().unwrap()).into();
    for namespace in &names {
        for kind in ["certs", "labels"] {
            let key = Group::of(namespace, kind).key("x".parse::<Name>().unwrap());
            local.put(&put(&key, "")).await.unwrap();
        }
    }
    let found = local.namespaces().await.unwrap();
    let found: Vec<_> = found.iter().map(Namespace::as_str).collect();
    assert_eq!(found, ["a", "a.b", "b"]);
}
