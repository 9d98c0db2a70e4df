//! Several real processes on one file. The others are this test binary, started again with a part to play.

#[cfg(test)]
use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt as _;
use servicekit_core::{
    Clock as _, Env, Instant, Kind, Random,
    clock::{SystemClock, timeout},
    store::{Change, Expect, Put, Store as _},
};
use servicekit_local::Local;

use crate::common::{self, group, key, place, put};

const PART: &str = "SERVICEKIT_TEST_PART";
const PATH: &str = "SERVICEKIT_TEST_PATH";
const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_change_of_another_process_is_seen_soon() {
    let (_folder, path) = place();
    let clock = SystemClock;
    let local = Local::open(&path, Env::system()).await.unwrap();
    let mut changes = local.watch(&group("group"));
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Snapshot(_)));
    let (mut writer, said) = play("write-slowly", &path);
    let mut seen = BTreeMap::new();
    while seen.len() < 20 {
        let change = timeout(&clock, LONG, changes.next()).await.unwrap().unwrap().unwrap();
        let Change::Put(record) = change else { panic!("{change:?}") };
        seen.insert(record.key.name.to_string(), clock.now());
    }
    let mut longest = Duration::ZERO;
    for line in said.filter(|line| line.starts_with("wrote ")) {
        let [_, name, at] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let at = Instant::from_boot(Duration::from_nanos(at.parse().unwrap()));
        longest = longest.max(seen[name].since(at));
    }
    eprintln!("a change of another process was seen within {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    assert!(writer.wait().unwrap().success());
}

#[tokio::test]
async fn a_writer_that_is_killed_loses_nothing_that_it_was_told_is_written() {
    for seed in common::seeds(8) {
        let (_folder, path) = place();
        let (mut writer, said) = play("write", &path);
        let random = Random::seeded(seed);
        let wanted = random.below(40);
        let mut acknowledged = Vec::new();
        for line in said {
            if let Some(name) = line.strip_prefix("wrote ") {
                acknowledged.push(name.to_owned());
                if acknowledged.len() as u64 == wanted {
                    SystemClock.sleep(Duration::from_micros(random.below(3000))).await;
                    writer.kill().unwrap();
                }
            } else if line == "ready" && wanted == 0 {
                writer.kill().unwrap();
            }
        }
        writer.wait().unwrap();
        let local = Local::open(&path, Env::system()).await.unwrap();
        let records = local.list(&[group("group")]).await.unwrap();
        for name in &acknowledged {
            let is_there = records.iter().any(|record| record.key.name.as_str() == name);
            assert!(is_there, "seed {seed}: {name} is lost");
        }
        assert!(
            records.len() <= acknowledged.len() + 1,
            "seed {seed}: written without being asked"
        );
        local.put(&put(&key("after"), "")).await.unwrap();
    }
}

#[tokio::test]
async fn fifty_processes_lose_no_update_and_none_is_starved() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    local.put(&put(&key("n"), "0")).await.unwrap();
    let processes: Vec<_> = (0..50).map(|_| play("count", &path)).collect();
    let mut longest = Duration::ZERO;
    for (mut process, said) in processes {
        let lines: Vec<_> = said.collect();
        assert!(process.wait().unwrap().success(), "{lines:?}");
        let wait = lines.iter().find_map(|line| line.strip_prefix("longest ")).unwrap();
        longest = longest.max(Duration::from_nanos(wait.parse().unwrap()));
    }
    eprintln!("the longest that one of fifty processes waited for one write: {longest:?}");
    let record = local.get(&key("n")).await.unwrap().unwrap();
    assert_eq!(&*record.value, (50 * INCREMENTS).to_string().as_bytes());
}

const INCREMENTS: u32 = 5;

/// Not a test by itself: what the other processes do.
#[tokio::test]
async fn part() {
    let (Ok(part), Some(path)) = (env::var(PART), env::var_os(PATH)) else { return };
    let local = Local::open(Path::new(&path), Env::system()).await.unwrap();
    let clock = SystemClock;
    println!("ready");
    match part.as_str() {
        "write" => {
            for i in 0.. {
                local.put(&put(&key(&format!("k{i}")), "")).await.unwrap();
                println!("wrote k{i}");
            }
        }
        "write-slowly" => {
            for i in 0..20 {
                clock.sleep(Duration::from_millis(50)).await;
                local.put(&put(&key(&format!("k{i}")), "")).await.unwrap();
                println!("wrote k{i} {}", clock.now().since_boot().as_nanos());
            }
        }
        "count" => {
            let mut longest = Duration::ZERO;
            for _ in 0..INCREMENTS {
                while !increment(&local, &mut longest).await {}
            }
            println!("longest {}", longest.as_nanos());
        }
        other => panic!("{other}"),
    }
}

async fn increment(local: &Local, longest: &mut Duration) -> bool {
    let found = local.get(&key("n")).await.unwrap().unwrap();
    let n: u32 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
    let next = Put { expect: Expect::At(found.version), ..put(&key("n"), &(n + 1).to_string()) };
    let asked = SystemClock.now();
    let answer = local.put(&next).await;
    *longest = (*longest).max(SystemClock.now().since(asked));
    match answer {
        Ok(_) => true,
        Err(error) if error.kind() == Kind::Conflict => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// Starts this binary again; its lines begin after those of the test harness.
fn play(part: &str, path: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "processes::part", "--nocapture"])
        .env(PART, part)
        .env(PATH, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = |out: ChildStdout| BufReader::new(out).lines().map_while(Result::ok);
    let said = lines(child.stdout.take().unwrap());
    (child, said)
}
